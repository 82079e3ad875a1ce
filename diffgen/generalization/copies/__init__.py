"""Samples beside training points, and beside those of other models."""
