"""Distances between all points of two sets, in chunks of rows, so that memory grows linearly."""

import torch
from torch import Tensor

from ddpm import distributed
from ddpm.files import InputError

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
        raise InputError(f"{name}: {len(points)} images are too few for {most} neighbours of each; use at least {most + 1}")

    def of_rows(rows: slice) -> Tensor:
        # The nearest of all is the point itself, or one equal to it.
        nearest = squared_distances(points[rows], points).topk(most + 1, largest=False).values
        return nearest[:, ranks] * (1 + ROUNDING)

    return torch.cat(distributed.share(row_chunks(len(points), len(points)), of_rows))
