"""Scores of a finished folder: what it writes for a test set, how good that is, where it is not, and against whom."""
