"""METRICS: every number that is computed from the features of samples, with its description; and the class that computes them."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ddpm.core.files import InputError
from ddpm.evaluation.fid import (
    check_features,
    consecutive_sets,
    disjoint_sets,
    frechet_at_infinity,
    inception_score,
    kernel_distance,
    kernel_within,
)  # fmt: skip
from ddpm.evaluation.prdc import PRDC
from ddpm.features.frechet import Gaussian, fit_gaussian, frechet

MIN_SETS = 3  # sets of samples from which a standard deviation is computed
SETS, FIRST_SET, ALL, SCORES = "sets", "first set", "all", "scores"
REAL = "real"


class Sizes(NamedTuple):
    """How many images a score is computed from.

    n: images in a set.
    sets: disjoint sets of samples.
    """

    n: int
    sets: int


def set_sizes(samples: int, test: int) -> Sizes:
    """Returns the largest n for which both the samples and the test split fill a set: FID falls as 1/N, so n must be equal."""
    n = min(samples, test)
    if n < 2:
        raise InputError(f"{samples} samples and {test} test images are too few; both need at least 2", key="evaluate")
    return Sizes(n, samples // n)


class Features(NamedTuple):
    """What a feature extractor returns for N images, float64.

    features: (N, D).
    probabilities: class probabilities (N, K), or None for an extractor that predicts no classes.
    """

    features: np.ndarray
    probabilities: np.ndarray | None

    def take(self, rows: slice | np.ndarray) -> "Features":
        """Returns some of the images."""
        return Features(self.features[rows], None if self.probabilities is None else self.probabilities[rows])


def fid(samples: Features, reference: "FeatureMetrics") -> float:
    return frechet(fit_gaussian(samples.features), reference.train_gaussian)


def fid_excess(scores: dict[str, float]) -> float:
    return scores["fid"] - scores["fid_floor"]


def fid_test(samples: Features, reference: "FeatureMetrics") -> float:
    return frechet(fit_gaussian(samples.features), reference.test_gaussian)


def fid_infinity(samples: Features, reference: "FeatureMetrics") -> float:
    return frechet_at_infinity(samples.features, reference.train_gaussian)


def kid(samples: Features, reference: "FeatureMetrics") -> float:
    return kernel_distance(samples.features, reference.train, reference.kernel_within_train)


def entropy_score(samples: Features, reference: "FeatureMetrics") -> float | None:
    return None if samples.probabilities is None else inception_score(samples.probabilities)


def prdc(samples: Features, reference: "FeatureMetrics") -> dict[str, float]:
    return reference.prdc(samples.features, "samples")


class Metric(NamedTuple):
    """A metric: how it is computed, where it is stored, and how tables describe it.

    key: its name in metrics.json.
    compute: function (Features of samples, FeatureMetrics) -> value; -> {key: value} for several metrics that share the work,
        which is then done once; -> None if the extractor does not allow it. With over = SCORES, (scores so far) -> value.
    title: its name in tables.
    better: "lower", "higher", or the number that is best.
    meaning: one line for the report.
    floor: where the value of real test images is stored: a key next to this one, such as "fid_floor"; REAL for the section
        `real` of metrics.json, under this key; "" for nowhere.
    over: what it is computed from: SETS (each disjoint set of n samples; the mean is stored), FIRST_SET, ALL (all samples at
        once) or SCORES (the metrics before it).
    spread: also store the standard deviation over sets, from 3 sets on, as KEY_sd.
    share: its value is a share of images, which tables print in percent.
    compared: whether tables that compare experiments contain it.
    """

    key: str
    compute: Callable[..., Any] | None
    title: str
    better: str | float
    meaning: str
    floor: str = ""
    over: str = SETS
    spread: bool = False
    share: bool = False
    compared: bool = True

    def describe(self) -> dict[str, str | float | bool]:
        """Returns the fields that a table needs."""
        return {key: getattr(self, key) for key in ("key", "title", "better", "meaning", "floor", "share")}


_ROWS = (
    Metric("fid", fid, "FID", "lower", "Fréchet distance of samples to training images", "fid_floor", spread=True),
    Metric(
        "fid_excess", fid_excess, "FID excess", "lower", "FID minus the floor (n real test images); below 0 may be copying",
        over=SCORES, compared=False
    ),
    Metric(
        "fid_test", fid_test, "FID to the test split", "lower",
        "FID of the first set to test images, which copies of training images do not lower", over=FIRST_SET, compared=False
    ),
    Metric(
        "fid_infinity", fid_infinity, "FID∞", "lower", "FID extrapolated to infinitely many images; has a larger spread",
        over=ALL, compared=False
    ),
    Metric(
        "kid", kid, "KID", "lower", "kernel distance, without a bias by n; around 0, also below, for equal distributions",
        "kid_floor", spread=True, compared=False
    ),
    Metric(
        "is", entropy_score, "IS", "higher", "Inception Score: each image is clearly of one class, and all classes occur",
        "is_real", spread=True, compared=False
    ),
    Metric("precision", prdc, "precision", "higher", "share of samples inside the manifold of training images: quality", REAL),
    Metric("recall", prdc, "recall", "higher", "share of training images inside the manifold of samples: diversity", REAL),
    Metric(
        "density", prdc, "density", "higher", "number of training images near each sample, relative to k; may exceed 1",
        REAL, compared=False
    ),
    Metric(
        "coverage", prdc, "coverage", "higher", "share of training images with a sample in their neighbourhood",
        REAL, compared=False
    ),
)  # fmt: skip
METRICS: dict[str, Metric] = {metric.key: metric for metric in _ROWS}


class FeatureMetrics:
    """Computes METRICS in one feature space. What several metrics need of the real images is computed once.

    train: features (M, D) of the training split, to which FID and KID are computed.
    test: Features of the test split, which represents perfect samples.
    """

    def __init__(self, name: str, train: np.ndarray, test: Features, sizes: Sizes, seed: int):
        """name: that of the extractor. Raises InputError with a key that begins with it for features that are not finite."""
        self.name, self.n, self.seed = name, sizes.n, seed
        self.train, self.test = check_features(train, f"{name}: training split"), self._checked(test, "test split")
        self.test_sets = disjoint_sets(len(self.test.features), sizes.n, seed)
        self._of_test: dict = {}

    @cached_property
    def train_gaussian(self) -> Gaussian:
        return fit_gaussian(self.train)

    @cached_property
    def test_gaussian(self) -> Gaussian:
        return fit_gaussian(self.test.features)

    @cached_property
    def kernel_within_train(self) -> float:
        return kernel_within(self.train)

    @cached_property
    def prdc(self) -> PRDC:
        """Against n random training images, or all where there are fewer: these metrics are defined for sets of equal size."""
        chosen = disjoint_sets(len(self.train), min(self.n, len(self.train)), self.seed)[0]
        return PRDC(self.train[chosen], f"{self.name}: training split")

    def score(self, samples: Features, name: str, keys: Iterable[str] = ()) -> dict[str, float]:
        """Returns the metrics named by `keys` (all, if empty) of samples, with their spreads and floors, in the order of METRICS.

        Raises InputError, with `name`, for features that are not finite, or for sets that are too small for a metric.
        """
        samples = self._checked(samples, name)
        sets = [samples.take(s) for s in consecutive_sets(len(samples.features), self.n)]
        parts = {SETS: sets, FIRST_SET: sets[:1], ALL: [samples]}
        scores, results = {}, {}
        for metric in [METRICS[key] for key in keys] or METRICS.values():
            if metric.over == SCORES:
                scores[metric.key] = metric.compute(scores)
                continue
            values = self._values(metric, parts[metric.over], results)
            if None in values:
                continue
            scores[metric.key] = float(np.mean(values))
            if metric.spread and len(values) >= MIN_SETS:  # the standard deviation of two values is too uncertain
                scores[f"{metric.key}_sd"] = float(np.std(values, ddof=1))
            if metric.floor not in ("", REAL):
                scores[metric.floor] = self.of_real(metric.key)
        return scores

    def real(self) -> dict[str, float]:
        """Returns the section `real`: metrics of sets of n test images, scored as if they were samples."""
        return {key: self.of_real(key) for key, metric in METRICS.items() if metric.floor == REAL}

    def of_real(self, key: str) -> float:
        """Returns a metric of n test images, the mean over disjoint sets."""
        return float(np.mean(self._values(METRICS[key], map(self.test.take, self.test_sets), self._of_test)))

    def _values(self, metric: Metric, parts: Iterable[Features], results: dict) -> list[float]:
        """results: those of functions that were called before, for metrics that share one."""
        call = metric.compute, metric.over
        if call not in results:
            results[call] = [metric.compute(part, self) for part in parts]
        return [value[metric.key] if isinstance(value, dict) else value for value in results[call]]

    def _checked(self, features: Features, name: str) -> Features:
        return features._replace(features=check_features(features.features, f"{self.name}: {name}"))
