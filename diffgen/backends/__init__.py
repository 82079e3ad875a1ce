"""Backends of the two ops; importing this package fills the registry."""
