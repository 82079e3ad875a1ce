"""Samples against K candidate sets: what one pass over each set says about every sample."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from diffgen.denoiser import EmpiricalDenoiser

BATCH_SIZE = 1024
"""Samples in a pass over a set."""


class Comparisons:
    """Nearest distances and log-densities of M samples under K sets.

    They come from the denoiser's pass (top-k, logsumexp): no matrix of samples by points is made.
    What is asked for is kept.

    Attributes:
        samples: ``(M, *S)``.
        denoisers: K denoisers, each over one set.
    """

    def __init__(
        self,
        samples: Tensor,
        denoisers: Sequence[EmpiricalDenoiser],
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Keep the samples and the sets; see the class."""
        self.samples = samples
        self.denoisers = list(denoisers)
        self._batch_size = batch_size
        self._distances: Tensor | None = None
        self._densities: dict[float, Tensor] = {}

    @property
    def num_features(self) -> int:
        """D, elements of a sample."""
        return self.samples[0].numel()

    @property
    def distances(self) -> Tensor:
        """L2 distance to the nearest point of each set, ``(M, K)`` float64."""
        if self._distances is None:
            # Distances do not depend on the noise level.
            self._distances = self._of_all(1.0, top_k=1)
        return self._distances

    def log_density(self, sigma: float) -> Tensor:
        """Log-density of each set's points plus noise of level sigma, ``(M, K)`` float64, nats."""
        if sigma not in self._densities:
            self._densities[sigma] = self._of_all(sigma, top_k=0)
        return self._densities[sigma]

    def scales(self, count: int) -> list[float]:
        """Noise levels from the closest samples to the spread between sets, geometric.

        Args:
            count: How many, at least 2.

        Returns:
            From half of the median distance to the nearest of all sets, as noise (over sqrt D), to
            the median distance to the nearest point of any one set.
        """
        typical = float(self.distances.median())
        if typical == 0:  # most samples are exact copies of a point in every set
            typical = float(self.distances.max()) or 1.0
        closest = float(self.distances.amin(1).median()) / sqrt(self.num_features) / 2
        # Exact copies have distance 0, of which no width can be made.
        lowest = max(closest, _LEAST_SHARE * typical)
        steps = torch.linspace(0, 1, count, dtype=torch.float64)
        found: list[float] = (lowest * (typical / lowest) ** steps).tolist()
        return found

    def _of_all(self, sigma: float, top_k: int) -> Tensor:
        columns = []
        with torch.no_grad():
            for denoiser in self.denoisers:
                of_set = []
                for x in self.samples.split(self._batch_size):
                    posterior = denoiser.posterior(x, sigma, top_k=top_k)
                    found = posterior.top_distances[:, 0] if top_k else posterior.log_density
                    of_set.append(found)
                columns.append(torch.cat(of_set).cpu())
        return torch.stack(columns, 1)


_LEAST_SHARE = 1e-3
"""Smallest noise level of a critic, as a share of the distance between sets."""
