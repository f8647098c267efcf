"""How two sets of features cover each other: precision and recall, density and coverage, from nearest neighbours in float64.

Distances between all points of two sets, in chunks of rows, so that memory grows linearly."""

import numpy as np
import torch
from torch import Tensor

from ddpm.core import processes
from ddpm.core.files import InputError

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

        parts = processes.map_over_ranks(row_chunks(len(points), len(self.real)), of_rows)
        precise, inside, recalled, covered = zip(*parts, strict=True)
        return {
            "precision": sum(precise) / len(points),
            "recall": float(torch.stack(recalled).any(0).double().mean()),
            "density": sum(inside) / (BALL_K * len(points)),
            "coverage": float(torch.stack(covered).any(0).double().mean()),
        }


ELEMENTS = 1 << 21  # of one chunk: 16 MB of float64
EQUAL = 1e-13  # share of the squared norms that is taken off: what rounding leaves between equal points is less
ROUNDING = 1e-10  # by which a radius is longer, so that the neighbour that it reaches to lies inside whichever way it is computed


def row_chunks(rows: int, columns: int) -> list[slice]:
    """Slices of rows, each with few enough for a matrix of that many columns; they depend on the sizes alone, so that results
    are the same on any number of processes."""
    step = max(1, ELEMENTS // max(columns, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances (N, M) between points (N, D) and (M, D), float64, by one matrix product.

    Exactly 0 between equal points, where the product leaves rounding.
    """
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    return norms.mul_(1 - EQUAL).addmm_(a, b.T, alpha=-2).clamp_(min=0)


def neighbour_radii(points: Tensor, ranks: list[int], name: str) -> Tensor:
    """Squared distance of each point (N, D) to its k-th nearest other point, for each k of `ranks`, (N, len(ranks)).

    Raises InputError, beginning with `name`, where there are no k others. Work is shared by the processes.
    """
    most = max(ranks)
    if len(points) <= most:
        raise InputError(f"{len(points)} images are too few for {most} neighbours of each; use at least {most + 1}", key=name)

    def of_rows(rows: slice) -> Tensor:
        # The nearest of all is the point itself, or one equal to it.
        nearest = squared_distances(points[rows], points).topk(most + 1, largest=False).values
        return nearest[:, ranks] * (1 + ROUNDING)

    return torch.cat(processes.map_over_ranks(row_chunks(len(points), len(points)), of_rows))
