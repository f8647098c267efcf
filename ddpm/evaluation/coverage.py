"""How two sets of features cover each other: precision and recall, density and coverage, from nearest neighbours in float64."""

import numpy as np
import torch
from torch import Tensor

from ddpm import distributed
from ddpm.evaluation.neighbours import neighbour_radii, row_chunks, squared_distances

MANIFOLD_K = 3  # of precision and recall, as in their paper
BALL_K = 5  # of density and coverage, as in theirs
LEAST = BALL_K + 1  # images that a set must have
RANKS = [MANIFOLD_K, BALL_K]


class Coverage:
    """Scores of samples against one set of real features. A ball reaches from a point to its k-th nearest other of its set.

    Precision and recall (Kynkäänniemi et al. 2019, k = 3): share of samples within any ball of the real points, and the other
    way round. Density and coverage (Naeem et al. 2020, k = 5): how many real balls hold a sample, over k, and share of real
    balls that hold a sample. All in 0..1 but density, which is about 1 where the laws are equal.

    All four depend on how many points each set has; the papers take equally many.
    """

    def __init__(self, real: np.ndarray, name: str):
        """real: features (R, D). Raises InputError, beginning with `name`, for fewer than 6."""
        self.centre = torch.from_numpy(real).mean(0)
        self.real = torch.from_numpy(real) - self.centre
        self.radii = neighbour_radii(self.real, RANKS, name)

    def __call__(self, features: np.ndarray, name: str) -> dict[str, float]:
        """{precision, recall, density, coverage} of features (N, D). Raises InputError for fewer than 6 of them.

        One pass over the distances between both sets, shared by the processes.
        """
        points = torch.from_numpy(features) - self.centre
        manifold = neighbour_radii(points, RANKS, name)[:, 0]

        def of_rows(rows: slice) -> tuple[int, int, Tensor, Tensor]:
            distances = squared_distances(points[rows], self.real)
            inside = distances <= self.radii[:, 1]
            precise = (distances <= self.radii[:, 0]).any(1).sum()
            recalled = (distances <= manifold[rows, None]).any(0)
            return int(precise), int(inside.sum()), recalled, inside.any(0)

        parts = distributed.share(row_chunks(len(points), len(self.real)), of_rows)
        precise, inside, recalled, covered = zip(*parts, strict=True)
        return {
            "precision": sum(precise) / len(points),
            "recall": float(torch.stack(recalled).any(0).double().mean()),
            "density": sum(inside) / (BALL_K * len(points)),
            "coverage": float(torch.stack(covered).any(0).double().mean()),
        }
