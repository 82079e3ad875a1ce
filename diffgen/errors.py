"""The exceptions that diffgen adds to Python's own."""

from __future__ import annotations


class DataError(ValueError):
    """A training set's data cannot be used: the message names the file and the place in it."""


class BackendError(RuntimeError):
    """No backend, or not the one asked for, can run a problem: the message lists the reasons."""


class ShardError(RuntimeError):
    """Processes that share a set cannot go on: the message names the rank, the step, the cause."""
