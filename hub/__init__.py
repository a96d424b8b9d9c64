"""Weights out to the world."""
