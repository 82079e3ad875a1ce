"""Seeds that follow from where training stands, so that no generator's state has to be kept."""

from __future__ import annotations

from hashlib import sha256

import torch


def derived_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed of its own for each purpose and step of one run.

    Example:
        >>> derived_seed(0, "noise", 7) == derived_seed(0, "noise", 7)
        True
        >>> derived_seed(0, "noise", 7) == derived_seed(0, "order", 7)
        False
    """
    text = " ".join(map(str, (purpose, seed, *numbers)))
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") >> 1


def derived_generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator with that seed."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *numbers))
