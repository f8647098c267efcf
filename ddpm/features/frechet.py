"""The Fréchet distance between two sets of features."""

from typing import NamedTuple

import numpy as np


class Gaussian(NamedTuple):
    """A normal distribution.

    mean: (D,).
    root: R (min(N, D), D) with R^T R the unbiased covariance.
    """

    mean: np.ndarray
    root: np.ndarray


def fit_gaussian(features: np.ndarray) -> Gaussian:
    """Returns the Gaussian with mean and covariance of features (N, D), N >= 2."""
    mean = features.mean(0)
    return Gaussian(mean, np.linalg.qr((features - mean) / np.sqrt(len(features) - 1), mode="r"))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Returns the squared Fréchet distance between two Gaussians (Heusel et al. 2017, eq. 6), >= 0.

    |mean_a - mean_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)). With C = R^T R the last trace is the nuclear norm of R_a R_b^T:
    one singular value decomposition, no square root of a matrix, and exact when N < D makes a covariance singular.
    """
    cross = np.linalg.norm(a.root @ b.root.T, "nuc")
    squared = np.square(a.mean - b.mean).sum() + np.square(a.root).sum() + np.square(b.root).sum() - 2 * cross
    return max(float(squared), 0.0)
