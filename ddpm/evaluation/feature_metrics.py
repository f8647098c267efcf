"""All scores of a set of samples in one feature space: of their features, and of the class probabilities beside them."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ddpm.core.files import InputError
from ddpm.evaluation.fid import (
    Gaussian,
    check_features,
    consecutive_sets,
    disjoint_sets,
    fit_gaussian,
    frechet,
    frechet_at_infinity,
    inception_score,
    kernel_distance,
    kernel_within,
)
from ddpm.evaluation.prdc import Coverage

SPREAD = 3  # sets from which a standard deviation is given


class Sizes(NamedTuple):
    """How many images a score is taken over: `n` in a set, and how many disjoint sets of samples there are."""

    n: int
    sets: int


def set_sizes(samples: int, test: int) -> Sizes:
    """The largest n for which both the samples and the test split fill a set: FID falls as 1/N, so both need the same."""
    n = min(samples, test)
    if n < 2:
        raise InputError(f"{samples} samples and {test} test images are too few; both need at least 2", key="evaluate")
    return Sizes(n, samples // n)


class Features(NamedTuple):
    """What a judge gives to images: features (N, D) and class probabilities (N, K), float64."""

    features: np.ndarray
    probabilities: np.ndarray


class FeatureMetrics:
    """Scores in one feature space; the reference is the training split, and the test split stands for perfect samples.

    FID and KID are taken to the full training split. Precision, recall, density and coverage are taken to n random images of it,
    or all where there are fewer: they are defined between sets of one size, and the same n for samples and test images.
    """

    def __init__(self, name: str, train: np.ndarray, test: Features, sizes: Sizes, seed: int):
        """train: features (M, D). Raises InputError, beginning with `name`, for features that are not finite."""
        self.name, self.sizes, self.seed = name, sizes, seed
        self.train = check_features(train, f"{name}: training split")
        self.test = self._checked(test, "test split")
        self.test_sets = disjoint_sets(len(self.test.features), sizes.n, seed)
        self.reference = fit_gaussian(self.train)
        self.floor = float(np.mean([frechet(fit_gaussian(self.test.features[s]), self.reference) for s in self.test_sets]))

    def fid(self, judged: Features, name: str) -> dict[str, float]:
        """{fid, fid_sd} of samples: FID to the training split, mean over disjoint sets of n; fid_sd from 3 sets on."""
        features = self._checked(judged, name).features
        sets = consecutive_sets(len(features), self.sizes.n)
        return _mean_and_sd("fid", [frechet(fit_gaussian(features[s]), self.reference) for s in sets])

    def score(self, judged: Features, name: str) -> dict[str, float]:
        """All scores of samples, each the mean over disjoint sets of n, beside the floor that n real images reach.

        Raises InputError, with `name`, for features that are not finite, or for an n of fewer than 6.
        """
        judged = self._checked(judged, name)
        sets = consecutive_sets(len(judged.features), self.sizes.n)
        fid = self.fid(judged, name)
        return {
            **fid,
            "fid_floor": self.floor,
            "fid_excess": fid["fid"] - self.floor,
            "fid_test": frechet(fit_gaussian(judged.features[sets[0]]), self._test_gaussian),
            "fid_infinity": frechet_at_infinity(judged.features, self.reference),
            **_mean_and_sd("kid", [self._kid(judged.features[s]) for s in sets]),
            "kid_floor": self.kid_floor,
            **_mean_and_sd("is", [inception_score(judged.probabilities[s]) for s in sets]),
            "is_real": self.is_real,
            **self._coverage(judged.features, sets, name),
        }

    def coverage(self, judged: Features, name: str) -> dict[str, float]:
        """{precision, recall, density, coverage} of samples, the mean over disjoint sets of n. Raises InputError as `score`."""
        features = self._checked(judged, name).features
        return self._coverage(features, consecutive_sets(len(features), self.sizes.n), name)

    def real(self) -> dict[str, float]:
        """{precision, recall, density, coverage} of sets of n test images, scored as if they were samples."""
        return self._coverage(self.test.features, self.test_sets, "test split")

    @cached_property
    def kid_floor(self) -> float:
        """KID of n test images, mean over disjoint sets."""
        return float(np.mean([self._kid(self.test.features[s]) for s in self.test_sets]))

    @cached_property
    def is_real(self) -> float:
        """Inception Score of n test images, mean over disjoint sets."""
        return float(np.mean([inception_score(self.test.probabilities[s]) for s in self.test_sets]))

    @cached_property
    def _test_gaussian(self) -> Gaussian:
        return fit_gaussian(self.test.features)

    @cached_property
    def _within_train(self) -> float:
        return kernel_within(self.train)

    @cached_property
    def _reference_balls(self) -> Coverage:
        chosen = disjoint_sets(len(self.train), min(self.sizes.n, len(self.train)), self.seed)[0]
        return Coverage(self.train[chosen], f"{self.name}: training split")

    def _checked(self, judged: Features, name: str) -> Features:
        return judged._replace(features=check_features(judged.features, f"{self.name}: {name}"))

    def _kid(self, features: np.ndarray) -> float:
        return kernel_distance(features, self.train, self._within_train)

    def _coverage(self, features: np.ndarray, sets: Sequence[slice | np.ndarray], name: str) -> dict[str, float]:
        found = [self._reference_balls(features[s], f"{self.name}: {name}") for s in sets]
        return {key: float(np.mean([scores[key] for scores in found])) for key in found[0]}


def _mean_and_sd(key: str, values: list[float]) -> dict[str, float]:
    """The mean over sets, and their standard deviation where there are at least 3: of two it says next to nothing."""
    spread = {f"{key}_sd": float(np.std(values, ddof=1))} if len(values) >= SPREAD else {}
    return {key: float(np.mean(values)), **spread}
