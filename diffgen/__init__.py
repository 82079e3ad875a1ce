"""Exact, fast empirical-optimal denoisers."""
