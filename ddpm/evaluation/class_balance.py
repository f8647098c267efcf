"""Whether samples show the classes as often as the training images do."""

import math

import numpy as np


def class_shares(seen: np.ndarray, classes: int) -> np.ndarray:
    """Share of each class (K,) among the classes (N,) that a judge sees."""
    return np.bincount(seen, minlength=classes) / len(seen)


def total_variation(seen: np.ndarray, expected: np.ndarray) -> float:
    """Half the sum of the differences between the class shares of seen (N,) and expected (K,); 0 for equal ones, at most 1."""
    return float(np.abs(class_shares(seen, len(expected)) - expected).sum() / 2)


def total_variation_floor(expected: np.ndarray, n: int) -> float:
    """Mean total variation that n independent draws from class shares (K,) have; about 1.2 / sqrt(n) for 10 equal classes.

    De Moivre's mean absolute deviation of a binomial count: E|X - np| = 2 m C(n, m) p^m q^(n - m + 1), m = floor(np) + 1.
    """
    return sum(_mean_absolute_deviation(n, p) for p in expected.tolist()) / (2 * n)


def _mean_absolute_deviation(n: int, p: float) -> float:
    m = math.floor(n * p) + 1
    if p <= 0 or m > n:
        return 0.0
    choose = math.lgamma(n + 1) - math.lgamma(m + 1) - math.lgamma(n - m + 1)
    return 2 * m * math.exp(choose + m * math.log(p) + (n - m + 1) * math.log1p(-p))
