"""What one sees of a run: the pre-flight table, the progress bar, the gradient in each layer."""
