"""Configurations for `accelerate launch`, one YAML per kind of hardware; docs/DISTRIBUTED.md says which to take."""
