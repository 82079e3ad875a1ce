"""How much of what a generative model draws comes from its training set."""

from __future__ import annotations

from diffgen.generalization.memorization import Memorization, memorization_ratio
from diffgen.generalization.neighbors import Neighbors, effective_neighbors

__all__ = ["Memorization", "Neighbors", "effective_neighbors", "memorization_ratio"]
