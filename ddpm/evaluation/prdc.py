"""Precision, recall, density and coverage of a set of features against another, from nearest neighbours in float64.

Distances between all points of two sets are computed in chunks of rows, so that memory grows linearly with the sets.
"""

import numpy as np
import torch
from torch import Tensor

from ddpm.core import processes
from ddpm.core.files import InputError

MANIFOLD_K = 3  # neighbours of precision and recall (Kynkäänniemi et al. 2019)
BALL_K = 5  # neighbours of density and coverage (Naeem et al. 2020)
MIN_IMAGES = BALL_K + 1  # the smallest set in which every point has BALL_K others
RANKS = [MANIFOLD_K, BALL_K]
ELEMENTS = 1 << 21  # distances in one chunk: 16 MB of float64
EQUAL = 1e-13  # share of the squared norms that is subtracted; more than the rounding error between equal points
ROUNDING = 1e-10  # relative margin of a radius, so that the neighbour that defines it lies inside however it is computed


class PRDC:
    """Scores of samples against one set of real features.

    The ball of a point reaches to its k-th nearest other point of the same set. Precision and recall (Kynkäänniemi et al. 2019,
    k = 3): the share of samples inside any ball of the real points, and the other way round. Density and coverage (Naeem et al.
    2020, k = 5): the number of real balls that contain a sample, over k, and the share of real balls that contain any sample.
    All lie in 0..1 but density, which is about 1 where the distributions are equal.

    All four depend on the size of each set; the papers use sets of equal size.
    """

    def __init__(self, real: np.ndarray, name: str):
        """real: features (R, D). Raises InputError with the key `name` for fewer than 6."""
        self.centre = torch.from_numpy(real).mean(0)
        self.real = torch.from_numpy(real) - self.centre
        self.radii = neighbour_radii(self.real, RANKS, name)

    def __call__(self, features: np.ndarray, name: str) -> dict[str, float]:
        """Returns {precision, recall, density, coverage} of features (N, D). Raises InputError for fewer than 6 of them.

        One pass over the distances between both sets, distributed over the processes.
        """
        points = torch.from_numpy(features) - self.centre
        manifold = neighbour_radii(points, RANKS, name)[:, 0]

        def compare_rows(rows: slice) -> tuple[int, int, Tensor, Tensor]:
            distances = squared_distances(points[rows], self.real)
            inside = distances <= self.radii[:, 1]
            precise = (distances <= self.radii[:, 0]).any(1).sum()
            recalled = (distances <= manifold[rows, None]).any(0)
            return int(precise), int(inside.sum()), recalled, inside.any(0)

        parts = processes.map_over_ranks(row_chunks(len(points), len(self.real)), compare_rows)
        precise, inside, recalled, covered = zip(*parts, strict=True)
        return {
            "precision": sum(precise) / len(points),
            "recall": float(torch.stack(recalled).any(0).double().mean()),
            "density": sum(inside) / (BALL_K * len(points)),
            "coverage": float(torch.stack(covered).any(0).double().mean()),
        }


def neighbour_radii(points: Tensor, ranks: list[int], name: str) -> Tensor:
    """Returns the squared distance of each point (N, D) to its k-th nearest other point, for each k of `ranks`: (N, len(ranks)).

    Raises InputError with the key `name` for fewer than k + 1 points. The work is distributed over the processes.
    """
    most = max(ranks)
    if len(points) <= most:
        raise InputError(f"{len(points)} images are too few for {most} neighbours of each; use at least {most + 1}", key=name)

    def radii_of_rows(rows: slice) -> Tensor:
        # The nearest of all is the point itself, or one equal to it.
        nearest = squared_distances(points[rows], points).topk(most + 1, largest=False).values
        return nearest[:, ranks] * (1 + ROUNDING)

    return torch.cat(processes.map_over_ranks(row_chunks(len(points), len(points)), radii_of_rows))


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Returns squared Euclidean distances (N, M) between points (N, D) and (M, D), float64, by one matrix product.

    Exactly 0 between equal points, where the product leaves a rounding error.
    """
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    return norms.mul_(1 - EQUAL).addmm_(a, b.T, alpha=-2).clamp_(min=0)


def row_chunks(rows: int, columns: int) -> list[slice]:
    """Returns slices of rows, each at most ELEMENTS elements of a matrix with that many columns.

    They depend on the sizes alone, so that results are equal on any number of processes.
    """
    step = max(1, ELEMENTS // max(columns, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
