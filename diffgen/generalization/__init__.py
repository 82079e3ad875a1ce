"""How much of what a generative model draws comes from its training set."""

from __future__ import annotations

from diffgen.generalization.collapse import Collapse, collapse_level, speciation_level
from diffgen.generalization.denoising_psnr import DenoisingPSNR, denoising_psnr
from diffgen.generalization.gap import DenoiserGap, GapCurve, denoiser_gap
from diffgen.generalization.gap_table import GapRow, gap_table
from diffgen.generalization.information import Information, index_information
from diffgen.generalization.irreducible import IrreducibleLoss, irreducible_loss
from diffgen.generalization.loss_by_time import LossByTime, loss_by_time
from diffgen.generalization.memorization import Memorization, memorization_ratio
from diffgen.generalization.neighbors import Neighbors, effective_neighbors
from diffgen.generalization.novelty import Novelty, NoveltyRow, novelty_sweep
from diffgen.generalization.similarity import (
    SameNoiseSimilarity,
    same_noise_samples,
    same_noise_similarity,
)
from diffgen.generalization.two_sets import TwoSets, two_sets_similarity

__all__ = [
    "Collapse",
    "DenoiserGap",
    "DenoisingPSNR",
    "GapCurve",
    "GapRow",
    "Information",
    "IrreducibleLoss",
    "LossByTime",
    "Memorization",
    "Neighbors",
    "Novelty",
    "NoveltyRow",
    "SameNoiseSimilarity",
    "TwoSets",
    "collapse_level",
    "denoiser_gap",
    "denoising_psnr",
    "effective_neighbors",
    "gap_table",
    "index_information",
    "irreducible_loss",
    "loss_by_time",
    "memorization_ratio",
    "novelty_sweep",
    "same_noise_samples",
    "same_noise_similarity",
    "speciation_level",
    "two_sets_similarity",
]
