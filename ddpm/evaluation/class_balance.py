"""Compares the class shares of samples with those of the training images."""

import math

import numpy as np


def class_shares(predicted_class: np.ndarray, classes: int) -> np.ndarray:
    """Returns the share of each class, (K,), among predicted classes (N,)."""
    return np.bincount(predicted_class, minlength=classes) / len(predicted_class)


def total_variation(predicted_class: np.ndarray, expected: np.ndarray) -> float:
    """Returns half the L1 distance between the class shares of predictions (N,) and expected shares (K,), in 0..1."""
    return float(np.abs(class_shares(predicted_class, len(expected)) - expected).sum() / 2)


def total_variation_floor(expected: np.ndarray, n: int) -> float:
    """Returns the mean total variation of n independent draws from class shares (K,); about 1.2 / sqrt(n) for 10 equal classes.

    De Moivre's mean absolute deviation of a binomial count: E|X - np| = 2 m C(n, m) p^m q^(n - m + 1), m = floor(np) + 1.
    """
    return sum(_mean_absolute_deviation(n, p) for p in expected.tolist()) / (2 * n)


def _mean_absolute_deviation(n: int, p: float) -> float:
    m = math.floor(n * p) + 1
    if p <= 0 or m > n:
        return 0.0
    choose = math.lgamma(n + 1) - math.lgamma(m + 1) - math.lgamma(n - m + 1)
    return 2 * m * math.exp(choose + m * math.log(p) + (n - m + 1) * math.log1p(-p))
