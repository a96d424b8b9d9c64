"""What a model is and what a run is."""
