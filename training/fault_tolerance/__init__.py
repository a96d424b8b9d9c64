"""A run survives: whole checkpoints, exact resume, signals, a full disk, a diverging loss."""
