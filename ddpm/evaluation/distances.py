"""Distances between sets of features, in float64: Fréchet distance and Inception Score."""

import numpy as np

from ddpm.files import InputError


def check_features(features: np.ndarray, name: str) -> np.ndarray:
    """float64 (N, D), finite, N >= 2. Raises InputError otherwise: NaN would come out as a plausible number or a crash."""
    features = np.asarray(features, np.float64)
    if len(features) < 2:
        raise InputError(f"{name}: {len(features)} images are too few for a covariance; use at least 2")
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        raise InputError(f"{name}: the features of {bad} of {len(features)} images are NaN or infinite")
    return features


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance between Gaussians fitted to features (N, D) and (M, D) (Heusel et al. 2017, eq. 6).

    |mean_a - mean_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)). With C = R^T R the last trace is the nuclear norm of R_a R_b^T:
    one singular value decomposition, no square root of a matrix, and right when N < D makes a covariance singular.
    """
    a, b = check_features(a, "first set"), check_features(b, "second set")
    mean_a, root_a = _mean_and_root(a)
    mean_b, root_b = _mean_and_root(b)
    cross = np.linalg.norm(root_a @ root_b.T, "nuc")
    squared = np.square(mean_a - mean_b).sum() + np.square(root_a).sum() + np.square(root_b).sum() - 2 * cross
    return max(float(squared), 0.0)


def _mean_and_root(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and R (min(N, D), D) with R^T R the unbiased covariance."""
    mean = features.mean(0)
    return mean, np.linalg.qr((features - mean) / np.sqrt(len(features) - 1), mode="r")


def inception_score(probabilities: np.ndarray) -> float:
    """exp of the mean KL divergence from each row of class probabilities (N, K) to their mean (Salimans et al. 2016).

    In 1..K; the features of its classifier decide what it means. One split: N should be 1,000 or more.
    """
    p = check_features(probabilities, "class probabilities")
    marginal = p.mean(0)
    # 0 log 0 is 0, also for a class that is never predicted.
    terms = np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(marginal, 1e-300))), 0)
    return float(np.exp(terms.sum(1).mean()))


def consecutive_sets(count: int, size: int) -> list[slice]:
    """As many sets of `size` items in a row as `count` items allow: of samples whose classes come in turn, each holds all
    classes equally often, which matters (random sets of 500 digits had twice the FID)."""
    return [slice(i * size, (i + 1) * size) for i in range(count // size)]


def disjoint_sets(count: int, size: int, seed: int) -> list[np.ndarray]:
    """Index arrays of as many disjoint random sets of `size` as `count` items allow."""
    order = np.random.default_rng(seed).permutation(count)
    return [order[i * size : (i + 1) * size] for i in range(count // size)]
