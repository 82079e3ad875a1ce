"""Finitely many noised points that no memory holds, and the optimum over them."""

from __future__ import annotations

from diffgen.noised.gaps import TabulatedGap
from diffgen.noised.posterior import NoisedPosterior
from diffgen.noised.training_set import NoisedTrainingSet

__all__ = ["NoisedPosterior", "NoisedTrainingSet", "TabulatedGap"]
