"""What only training raises."""

from __future__ import annotations


class NonFiniteLossError(ValueError):
    """The loss or its gradient is NaN or infinite: the message says the step and the rate."""
