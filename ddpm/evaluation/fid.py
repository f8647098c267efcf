"""FID, its limit for many images, KID and the Inception Score, from features and class probabilities in float64."""

import math

import numpy as np
import torch

from ddpm.core import processes
from ddpm.core.files import InputError
from ddpm.evaluation.prdc import row_chunks
from ddpm.features.frechet import Gaussian, fit_gaussian, frechet

# fid_infinity fits a line to the FID of the whole set, of its halves, ... at most of its fifths, as long as each part holds four
# times as many images as there are features. In smaller parts FID falls faster than 1/N, and the line ends too low.
INFINITY_PARTS = 5
INFINITY_IMAGES = 4
# Kernels within a set are summed inside blocks of this many features, so that time grows linearly; the mean stays unbiased.
KERNEL_BLOCK = 5_000


def check_features(features: np.ndarray, name: str) -> np.ndarray:
    """Returns features (N, D) as float64. Raises InputError with the key `name` unless they are finite and N >= 2.

    NaN would otherwise give a plausible number or a crash inside a library.
    """
    features = np.asarray(features, np.float64)
    if len(features) < 2:
        raise InputError(f"{len(features)} images are too few for a covariance; use at least 2", key=name)
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        raise InputError(
            f"the features of {bad} of {len(features)} images are NaN or infinite; the extractor's weights are damaged: run "
            "`dvc repro -f train_classifier`, or replace the weights file of a pretrained extractor",
            key=name,
        )
    return features


def frechet_at_infinity(features: np.ndarray, reference: Gaussian) -> float:
    """Returns the Fréchet distance extrapolated to infinitely many images (Chong & Forsyth 2020): FID is linear in 1/N.

    Fits a least-squares line to the mean distance of the features (N, D) whole, in halves, ... in fifths, and evaluates it at
    1/N = 0; only the first two are used where N < 12 D, and the result is unreliable where N < 4 D. The bias of the finite
    reference stays. The value may be negative, by noise, or where the parts hold the classes less evenly than the whole.

    Raises InputError for fewer than 4 features.
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
    """Returns the KID: the unbiased squared maximum mean discrepancy of features (N, D) and (M, D) (Bińkowski et al. 2018).

    The kernel is (x.y / D + 1)^3. The mean is taken over all pairs, not over random subsets: no randomness, and less noise. The
    value is around 0, also below, for sets of one distribution, and below 0 for one whose classes are more even than random.
    within_b: `kernel_within(b)`, if already known. N and M are at least 2. The work is distributed over the processes.
    """
    between = _kernel_sum(a, b) / (len(a) * len(b))
    return kernel_within(a) + (kernel_within(b) if within_b is None else within_b) - 2 * between


def kernel_within(features: np.ndarray) -> float:
    """Returns the mean kernel between different features (N, D), N >= 2; beyond 5,000 of them, between those of one block."""
    blocks = np.array_split(features, -(-len(features) // KERNEL_BLOCK))
    diagonals = [((np.square(block).sum(1) / block.shape[1] + 1) ** 3).sum() for block in blocks]
    total = math.fsum(_kernel_sum(block, block) - own for block, own in zip(blocks, diagonals, strict=True))
    return total / sum(len(block) * (len(block) - 1) for block in blocks)


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
    x, y = torch.from_numpy(a), torch.from_numpy(b)

    def sum_rows(rows: slice) -> float:
        base = (x[rows] @ y.T).div_(a.shape[1]).add_(1)
        return float(base.square().mul_(base).sum())

    return math.fsum(processes.map_over_ranks(row_chunks(len(a), len(b)), sum_rows))


def inception_score(probabilities: np.ndarray) -> float:
    """Returns exp of the mean KL divergence from each row of class probabilities (N, K) to their mean (Salimans et al. 2016).

    The value lies in 1..K and depends on the classifier. One split is used: N should be at least 1,000.
    """
    p = check_features(probabilities, "class probabilities")
    marginal = p.mean(0)
    # 0 log 0 is 0, also for a class that is never predicted.
    terms = np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(marginal, 1e-300))), 0)
    return float(np.exp(terms.sum(1).mean()))


def consecutive_sets(count: int, size: int) -> list[slice]:
    """Returns slices of `size` consecutive items, for as many whole sets as `count` items give.

    The classes of samples are evenly spread, so each set holds them in the shares of the training split. This matters: random
    sets of 500 digits had twice the FID.
    """
    return [slice(i * size, (i + 1) * size) for i in range(count // size)]


def disjoint_sets(count: int, size: int, seed: int) -> list[np.ndarray]:
    """Returns index arrays of disjoint random sets of `size` items, for as many whole sets as `count` items give."""
    order = np.random.default_rng(seed).permutation(count)
    return [order[i * size : (i + 1) * size] for i in range(count // size)]
