"""The Evaluator: all scores of a set of samples, in the layout of metrics.json."""

from functools import cache, cached_property
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import ConfigDict, Field

from ddpm.core.files import InputError
from ddpm.core.limits import MAX_TIMESTEPS
from ddpm.core.params import OrWord
from ddpm.core.paths import samples_file
from ddpm.data.prepared import Prepared
from ddpm.evaluation.class_balance import class_shares, total_variation, total_variation_floor
from ddpm.evaluation.feature_metrics import METRICS, FeatureMetrics, Features, Metric, set_sizes
from ddpm.evaluation.fid import consecutive_sets
from ddpm.evaluation.lpips import Diversity
from ddpm.evaluation.memorization import Memorization
from ddpm.evaluation.prdc import MIN_IMAGES
from ddpm.features.classifier import Classifier
from ddpm.features.extractors import EXTRACTORS, Extract
from ddpm.features.pretrained import MISSING, PretrainedSettings, find_weights
from ddpm.networks.checkpoints import CheckpointName
from ddpm.sampling.settings import Count

CLASSIFIER = "classifier"
# Metrics that each level of `evaluate` computes in the classifier's features; () is all of METRICS.
LEVELS = {"fid": ("fid",), "coverage": ("fid", "precision", "recall", "density", "coverage"), "full": ()}
# Scores that need no feature extractor, by their path below a sampler in metrics.json. `Evaluator.evaluate` computes them.
SAMPLE_METRICS = (
    Metric(
        "classes.tv", None, "class TV", "lower", "total variation between class shares of samples and of training images",
        "classes.tv_floor"
    ),
    Metric(
        "memorization.nn_auc", None, "nn_auc", 0.5, "probability that a sample is farther from its nearest training image than a "
        "test image; below 0.5 is copying"
    ),
    Metric(
        "memorization.near_copies", None, "near copies", "lower", "share of samples much closer to one training image than to "
        "its next 50", "memorization.near_copies_test", share=True
    ),
    Metric(
        "memorization.authenticity", None, "authenticity", "higher", "share of samples farther from their nearest training image "
        "than that image from its nearest other one", "memorization.authenticity_test", share=True
    ),
    Metric("diversity.classifier", None, "diversity", 1, "LPIPS between samples over that of test images; low is a collapse"),
    Metric("diversity.alex", None, "diversity (AlexNet)", 1, "the same, in the features of AlexNet"),
)  # fmt: skip


class Evaluate(PretrainedSettings):
    """The `evaluate` section."""

    model_config = ConfigDict(extra="forbid")

    reconstruction_images: Annotated[Count, Field(ge=2)]
    likelihood_images: Annotated[Count, Field(ge=2)]
    likelihood_levels: Annotated[Annotated[int, Field(ge=1, le=MAX_TIMESTEPS)] | None, OrWord("all")]
    round_trip_images: Count
    training_curve: Annotated[int, Field(ge=0, le=1_000)]
    training_curve_samples: Annotated[Count, Field(ge=2)]
    checkpoint: CheckpointName


class Evaluation(NamedTuple):
    """The result of `Evaluator.evaluate`.

    scores: for metrics.json.
    predicted_class: class that the classifier predicts for each sample, (N,), or None where it predicts no classes.
    neighbours: the K samples most like copies and their nearest training images, uint8 (2, K, H, W, C); level "full" alone.
    ratios: ascending distance ratios of the neighbours, (K,), as in `memorization.Near`; level "full" alone.
    """

    scores: dict
    predicted_class: np.ndarray | None
    neighbours: np.ndarray | None = None
    ratios: np.ndarray | None = None


class Space(NamedTuple):
    """A loaded feature extractor.

    extract: see `Extract`.
    metrics: METRICS in its features.
    class_shares: share of each class among its predictions for the training split, (K,); None if it predicts no classes.
    """

    extract: Extract
    metrics: FeatureMetrics
    class_shares: np.ndarray | None


class Evaluator:
    """Scores samples against one data set. What is computed from real images is computed once, when first needed."""

    def __init__(self, data: Prepared, classifier: Classifier, samples: int, seed: int, device: torch.device):
        """samples: the smallest number of samples that will be scored at once. Raises InputError for fewer than 2."""
        self.data, self.classifier, self.seed, self.device = data, classifier, seed, device
        self.sizes = set_sizes(samples, len(data.test.images))
        # The feature space of an extractor in EXTRACTORS, by its name; None if its weights file is missing, or if its features
        # measure nothing.
        self.space = cache(self._load)
        # Loaded at once, so that damaged weights are refused before anything is sampled.
        space = self.space(CLASSIFIER)
        self.real_predicted_class = space and _predicted(space.metrics.test)

    @property
    def fid_floor(self) -> float | None:
        """FID of n real test images in the classifier's features; None where these measure nothing."""
        space = self.space(CLASSIFIER)
        return space and space.metrics.of_real("fid")

    @cached_property
    def memorization(self) -> Memorization:
        return Memorization(self.data.train.images, self.data.test.images)

    @cached_property
    def diversity(self) -> Diversity:
        return Diversity(self.classifier, self.data.test.images, self.sizes.n, self.seed, self.device)

    def evaluate(self, samples: np.ndarray, requested_class: np.ndarray | None, name: str, level: str = "full") -> Evaluation:
        """Scores samples uint8 (N, H, W, C).

        requested_class: the classes (N,) that the samples were conditioned on, or None; then there is no accuracy.
        name: that of the samples in error messages and progress lines.
        level: "fid" for FID and accuracy; "coverage" also for precision, recall, density and coverage, both in the classifier's
            features alone; "full" for all metrics, in the features of every extractor.

        Raises InputError if the samples are not of the data's shape and type, or for sets of fewer than 6 images unless level
        is "fid".
        """
        check_samples(samples, self.data.shape, name)
        if level == "full":
            self.check_enough("evaluate", "sample_ddpm.samples, sample_ddim.samples")
        scores: dict = {}
        predicted_class = None
        for extractor in EXTRACTORS if level == "full" else [CLASSIFIER]:
            space = self.space(extractor)
            if space is None:
                scores[extractor] = self._not_measured(extractor)
                continue
            features = Features(*space.extract(samples, name))
            scores[extractor] = space.metrics.score(features, name, LEVELS[level]) | _status(extractor)
            if extractor == CLASSIFIER:
                predicted_class = _predicted(features)
        if requested_class is not None and predicted_class is not None:
            scores["accuracy"] = float((predicted_class == requested_class).mean())
        if level != "full":
            return Evaluation(scores, predicted_class)
        near = self.memorization.nearest(samples, name)
        if predicted_class is not None:
            scores["classes"] = self._class_balance(predicted_class)
        scores["memorization"] = self.memorization.score(near)
        scores["diversity"] = self.diversity(samples)
        return Evaluation(scores, predicted_class, *self.memorization.closest(samples, near))

    def real(self) -> dict:
        """Returns the section `real` of metrics.json: per extractor, metrics of test images scored as if they were samples."""
        spaces = {name: self.space(name) for name in EXTRACTORS}
        return {
            name: self._not_measured(name) if space is None else space.metrics.real() | _status(name)
            for name, space in spaces.items()
        }

    def check_enough(self, stage: str, settings: str) -> None:
        """Raises InputError, with a stage as the key and its settings in the text, if sets are too small for neighbours."""
        if self.sizes.n < MIN_IMAGES:
            raise InputError(
                f"sets of {self.sizes.n} images are too few for {MIN_IMAGES - 1} neighbours of each; use at least {MIN_IMAGES} "
                f"samples ({settings}) and test images",
                key=stage,
            )

    def _load(self, name: str) -> Space | None:
        extractor = EXTRACTORS[name]
        weights = extractor.weights and find_weights(extractor.weights)
        if (extractor.weights and not weights) or (name == CLASSIFIER and self.classifier.status != "ok"):
            return None
        extract = extractor.load(self.device, weights, self.classifier)
        train, test = (
            Features(*extract(split.images, part)) for split, part in ((self.data.train, "train"), (self.data.test, "test"))
        )
        shares = None
        if train.probabilities is not None:
            shares = class_shares(train.probabilities.argmax(1), train.probabilities.shape[1])
        return Space(extract, FeatureMetrics(name, train.features, test, self.sizes, self.seed), shares)

    def _not_measured(self, name: str) -> dict[str, str]:
        return {"status": self.classifier.status} if name == CLASSIFIER else MISSING

    def _class_balance(self, predicted_class: np.ndarray) -> dict[str, float]:
        expected = self.space(CLASSIFIER).class_shares
        sets = consecutive_sets(len(predicted_class), self.sizes.n)
        return {
            "tv": float(np.mean([total_variation(predicted_class[s], expected) for s in sets])),
            "tv_floor": total_variation_floor(expected, self.sizes.n),
        }


def describe_metrics() -> dict[str, list[dict]]:
    """Returns the extractors and metrics of metrics.json with titles and meanings, in order, as results.py stores them."""
    return {
        "extractors": [{"name": name, "title": extractor.title} for name, extractor in EXTRACTORS.items()],
        "feature_metrics": [metric.describe() for metric in METRICS.values()],
        "sample_metrics": [metric.describe() for metric in SAMPLE_METRICS],
    }


def check_samples(images: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    """Raises InputError, with the file of samples as the key, unless the images are uint8 (N, *shape)."""
    if np.issubdtype(images.dtype, np.floating) and not np.isfinite(images).all():
        bad = int((~np.isfinite(images.reshape(len(images), -1)).all(1)).sum())
        raise InputError(
            f"{bad} of {len(images)} images are NaN or infinite; run `dvc repro -f sample_{name}`", key=samples_file(name)
        )
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise InputError(
            f"holds {images.dtype} images of shape {images.shape[1:]}, the data is uint8 of shape "
            f"{shape}; run `dvc repro sample_{name}`",
            key=samples_file(name),
        )


def _predicted(features: Features) -> np.ndarray | None:
    return None if features.probabilities is None else features.probabilities.argmax(1)


def _status(extractor: str) -> dict[str, str]:
    """Extractors that depend on a weights file have a status."""
    return {} if EXTRACTORS[extractor].weights is None else {"status": "ok"}
