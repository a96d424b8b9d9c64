"""Recipes shipped with the package, one YAML per task."""
