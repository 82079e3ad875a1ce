"""How much of what a generative model draws comes from its training set."""

from __future__ import annotations

from diffgen.generalization.bounds.attribution import Attribution, set_attribution
from diffgen.generalization.bounds.closed_forms import (
    KnownInformation,
    copier_information,
    copier_information_floor,
    gaussian_copier,
    mean_information,
)
from diffgen.generalization.bounds.event_bound import EventBound, event_bound
from diffgen.generalization.bounds.excess_risk import ExcessRisk, excess_risk
from diffgen.generalization.bounds.kernel_gap import KernelGap, kernel_gap_bound
from diffgen.generalization.copies.copying import (
    Authenticity,
    CalibratedDistance,
    DataCopying,
    authenticity,
    calibrated_distance,
    data_copying,
)
from diffgen.generalization.copies.memorization import Memorization, memorization_ratio
from diffgen.generalization.copies.novelty import Novelty, NoveltyRow, novelty_sweep
from diffgen.generalization.copies.similarity import (
    SameNoiseSimilarity,
    same_noise_samples,
    same_noise_similarity,
)
from diffgen.generalization.copies.two_sets import TwoSets, two_sets_similarity
from diffgen.generalization.over_noise.collapse import Collapse, collapse_level, speciation_level
from diffgen.generalization.over_noise.denoising_psnr import DenoisingPSNR, denoising_psnr
from diffgen.generalization.over_noise.gap import DenoiserGap, GapCurve, denoiser_gap
from diffgen.generalization.over_noise.gap_table import GapRow, gap_table
from diffgen.generalization.over_noise.information import Information, index_information
from diffgen.generalization.over_noise.irreducible import IrreducibleLoss, irreducible_loss
from diffgen.generalization.over_noise.loss_by_time import LossByTime, loss_by_time
from diffgen.generalization.over_noise.neighbors import Neighbors, effective_neighbors
from diffgen.generalization.statistics.bootstrap import bootstrap_interval

__all__ = [
    "Attribution",
    "Authenticity",
    "CalibratedDistance",
    "Collapse",
    "DataCopying",
    "DenoiserGap",
    "DenoisingPSNR",
    "EventBound",
    "ExcessRisk",
    "GapCurve",
    "GapRow",
    "Information",
    "IrreducibleLoss",
    "KernelGap",
    "KnownInformation",
    "LossByTime",
    "Memorization",
    "Neighbors",
    "Novelty",
    "NoveltyRow",
    "SameNoiseSimilarity",
    "TwoSets",
    "authenticity",
    "bootstrap_interval",
    "calibrated_distance",
    "collapse_level",
    "copier_information",
    "copier_information_floor",
    "data_copying",
    "denoiser_gap",
    "denoising_psnr",
    "effective_neighbors",
    "event_bound",
    "excess_risk",
    "gap_table",
    "gaussian_copier",
    "index_information",
    "irreducible_loss",
    "kernel_gap_bound",
    "loss_by_time",
    "mean_information",
    "memorization_ratio",
    "novelty_sweep",
    "same_noise_samples",
    "same_noise_similarity",
    "set_attribution",
    "speciation_level",
    "two_sets_similarity",
]
