"""Text in, weights out."""
