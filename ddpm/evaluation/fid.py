"""Distances between sets of features, in float64: Fréchet, its limit for many images, and by a kernel; Inception Score."""

import math
from typing import NamedTuple

import numpy as np
import torch

from ddpm.core import processes
from ddpm.core.files import InputError
from ddpm.evaluation.prdc import row_chunks

# Of the regression behind fid_infinity: the features whole, in halves, ... at most in fifths, as long as each part holds four
# times as many images as there are features. In smaller ones FID falls faster than 1/N, and the line ends too low.
INFINITY_PARTS = 5
INFINITY_IMAGES = 4
# Kernels within a set are summed inside blocks of so many features, so that time grows linearly; the mean stays unbiased.
KERNEL_BLOCK = 5_000


def check_features(features: np.ndarray, name: str) -> np.ndarray:
    """float64 (N, D), finite, N >= 2. Raises InputError otherwise: NaN would come out as a plausible number or a crash."""
    features = np.asarray(features, np.float64)
    if len(features) < 2:
        raise InputError(f"{len(features)} images are too few for a covariance; use at least 2", key=name)
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        raise InputError(
            f"the features of {bad} of {len(features)} images are NaN or infinite; the judge's weights are damaged, make "
            "them again with `dvc repro -f train_classifier`, or replace the Inception's file",
            key=name,
        )
    return features


class Gaussian(NamedTuple):
    """mean (D,); root R (min(N, D), D) with R^T R the unbiased covariance."""

    mean: np.ndarray
    root: np.ndarray


def fit_gaussian(features: np.ndarray) -> Gaussian:
    """The Gaussian with mean and covariance of features (N, D), N >= 2."""
    mean = features.mean(0)
    return Gaussian(mean, np.linalg.qr((features - mean) / np.sqrt(len(features) - 1), mode="r"))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet distance between two Gaussians (Heusel et al. 2017, eq. 6), >= 0.

    |mean_a - mean_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)). With C = R^T R the last trace is the nuclear norm of R_a R_b^T:
    one singular value decomposition, no square root of a matrix, and right when N < D makes a covariance singular.
    """
    cross = np.linalg.norm(a.root @ b.root.T, "nuc")
    squared = np.square(a.mean - b.mean).sum() + np.square(a.root).sum() + np.square(b.root).sum() - 2 * cross
    return max(float(squared), 0.0)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """`frechet` between Gaussians fitted to features (N, D) and (M, D). Raises InputError for what `check_features` refuses."""
    return frechet(fit_gaussian(check_features(a, "first set")), fit_gaussian(check_features(b, "second set")))


def frechet_at_infinity(features: np.ndarray, reference: Gaussian) -> float:
    """Fréchet distance that infinitely many images like these would have (Chong & Forsyth 2020): FID is linear in 1/N.

    The least-squares line through the mean distance of the features (N, D) whole, in halves, ... in fifths, read off at 1/N = 0;
    through the first two alone where N < 12 D, and not to be trusted where N < 4 D. The bias of the finite reference stays. It
    may fall below 0, by noise, or where the parts hold the classes less evenly than the whole.

    Raises InputError for fewer than 4 features, which give no line.
    """
    if len(features) < 4:
        raise InputError(
            f"{len(features)} images are too few for a line through several sizes; use at least 4", key="fid_infinity"
        )
    inverse, values = [], []
    most = min(INFINITY_PARTS, max(2, len(features) // (INFINITY_IMAGES * features.shape[1])))
    for parts in range(1, min(most, len(features) // 2) + 1):
        size = len(features) // parts
        sets = consecutive_sets(len(features), size)[:parts]
        inverse.append(1 / size)
        values.append(np.mean([frechet(fit_gaussian(features[s]), reference) for s in sets]))
    return float(np.polyfit(inverse, values, 1)[1])


def kernel_distance(a: np.ndarray, b: np.ndarray, within_b: float | None = None) -> float:
    """KID: unbiased squared maximum mean discrepancy of features (N, D) and (M, D) (Bińkowski et al. 2018).

    The kernel is (x.y / D + 1)^3. Over all pairs, not over random subsets: no randomness, and less noise. Around 0, also below
    it, for sets of one law, and below it for one whose classes are more even than chance makes them.
    within_b: `kernel_within(b)`, if it is known already. N and M at least 2. Work is shared by the processes.
    """
    between = _kernel_sum(a, b) / (len(a) * len(b))
    return kernel_within(a) + (kernel_within(b) if within_b is None else within_b) - 2 * between


def kernel_within(features: np.ndarray) -> float:
    """Mean kernel between different features of one set (N, D), N >= 2; beyond 5,000 of them, between those of one block."""
    blocks = np.array_split(features, -(-len(features) // KERNEL_BLOCK))
    alone = [((np.square(block).sum(1) / block.shape[1] + 1) ** 3).sum() for block in blocks]
    total = math.fsum(_kernel_sum(block, block) - own for block, own in zip(blocks, alone, strict=True))
    return total / sum(len(block) * (len(block) - 1) for block in blocks)


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
    x, y = torch.from_numpy(a), torch.from_numpy(b)

    def of_rows(rows: slice) -> float:
        base = (x[rows] @ y.T).div_(a.shape[1]).add_(1)
        return float(base.square().mul_(base).sum())

    return math.fsum(processes.map_over_ranks(row_chunks(len(a), len(b)), of_rows))


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
