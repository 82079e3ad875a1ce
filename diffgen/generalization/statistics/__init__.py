"""Intervals and tests of significance."""
