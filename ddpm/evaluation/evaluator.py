"""Scores of a set of samples by all judges, in the key layout of metrics.json."""

from functools import cached_property
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import ConfigDict, Field

from ddpm.core.files import InputError
from ddpm.core.params import OrWord
from ddpm.data.prepared import Prepared
from ddpm.evaluation.class_balance import class_shares, total_variation, total_variation_floor
from ddpm.evaluation.feature_metrics import FeatureMetrics, Features, set_sizes
from ddpm.evaluation.fid import consecutive_sets
from ddpm.evaluation.lpips import Diversity
from ddpm.evaluation.memorization import Memorization
from ddpm.evaluation.prdc import LEAST
from ddpm.features.classifier import Classifier, predict
from ddpm.features.extractors import Inception
from ddpm.features.pretrained import INCEPTION, MISSING, PretrainedSettings, find_weights
from ddpm.networks.checkpoints import CheckpointName


class Evaluate(PretrainedSettings):
    """The `evaluate` section."""

    model_config = ConfigDict(extra="forbid")

    reconstruction_images: Annotated[int, Field(ge=2)]
    likelihood_images: Annotated[int, Field(ge=2)]
    likelihood_levels: Annotated[Annotated[int, Field(ge=1)] | None, OrWord("all")]
    round_trip_images: Annotated[int, Field(ge=1)]
    checkpoint: CheckpointName


class Scored(NamedTuple):
    """scores: for metrics.json; seen: class that the judge sees in each sample (N,); neighbours: the samples most like copies
    above their nearest training images, uint8 (2, K, H, W, C), and their ratios (K,)."""

    scores: dict
    seen: np.ndarray
    neighbours: np.ndarray
    ratios: np.ndarray


class Evaluator:
    """The judges of one data set, with what they find in its real images, found once, when it is first needed."""

    def __init__(self, data: Prepared, judge: Classifier, samples: int, seed: int, device: torch.device):
        """samples: how many there are in each set that will be scored, at least. Raises InputError for fewer than 2."""
        self.data, self.judge, self.seed, self.device = data, judge, seed, device
        self.sizes = set_sizes(samples, len(data.test.images))
        train, test = (Features(*predict(judge, split.images, device)) for split in (data.train, data.test))
        self.class_shares = class_shares(train.probabilities.argmax(1), len(data.class_names))
        self.real_seen = test.probabilities.argmax(1)
        self.classifier = FeatureMetrics("classifier", train.features, test, self.sizes, seed)

    @cached_property
    def network(self) -> Inception | None:
        path = find_weights(INCEPTION)
        return None if path is None else Inception(path, self.device)

    @cached_property
    def inception(self) -> FeatureMetrics | None:
        """The Inception's feature space, None where its weights are missing."""
        if self.network is None:
            return None
        train, test = (self._inception(s.images, name) for s, name in ((self.data.train, "train"), (self.data.test, "test")))
        return FeatureMetrics("inception", train.features, test, self.sizes, self.seed)

    @cached_property
    def memorization(self) -> Memorization:
        return Memorization(self.data.train.images, self.data.test.images)

    @cached_property
    def diversity(self) -> Diversity:
        return Diversity(self.judge, self.data.test.images, self.sizes.n, self.seed, self.device)

    def check_enough(self, stage: str, settings: str) -> None:
        """Raises InputError, naming a stage and its settings, if sets are too small for neighbours."""
        if self.sizes.n < LEAST:
            raise InputError(
                f"sets of {self.sizes.n} images are too few for {LEAST - 1} neighbours of each; use at least {LEAST} "
                f"samples ({settings}) and test images",
                key=stage,
            )

    def fid(self, images: np.ndarray, labels: np.ndarray | None, name: str) -> dict[str, float]:
        """{fid, fid_sd, accuracy} of samples as in `examine`, by the classifier alone: what many sets are compared by."""
        check_samples(images, self.data.shape, name)
        judged = Features(*predict(self.judge, images, self.device))
        return self.classifier.fid(judged, name) | _accuracy(judged.probabilities.argmax(1), labels)

    def compare(self, images: np.ndarray, labels: np.ndarray | None, name: str) -> dict[str, float]:
        """What `fid` gives, and {precision, recall, density, coverage}."""
        check_samples(images, self.data.shape, name)
        judged = Features(*predict(self.judge, images, self.device))
        scores = self.classifier.fid(judged, name) | self.classifier.coverage(judged, name)
        return scores | _accuracy(judged.probabilities.argmax(1), labels)

    def score(self, images: np.ndarray, labels: np.ndarray | None, name: str) -> tuple[dict, np.ndarray]:
        """`scores` and `seen` of `examine`."""
        return self.examine(images, labels, name)[:2]

    def examine(self, images: np.ndarray, labels: np.ndarray | None, name: str) -> Scored:
        """All scores of samples uint8 (N, H, W, C); labels (N,) are the classes asked for, without them there is no accuracy.

        Raises InputError if the samples are not of the data's shape and type, or fewer than 6 to a set.
        """
        check_samples(images, self.data.shape, name)
        self.check_enough("evaluate", "sample_ddpm.samples, sample_ddim.samples")
        judged = Features(*predict(self.judge, images, self.device))
        seen = judged.probabilities.argmax(1)
        scores = {"classifier": self.classifier.score(judged, name), "inception": MISSING}
        if self.inception is not None:
            scores["inception"] = {**self.inception.score(self._inception(images, name), name), "status": "ok"}
        near = self.memorization.nearest(images, name)
        scores |= _accuracy(seen, labels)
        scores["classes"] = self._classes(seen)
        scores["memorization"] = self.memorization.score(near)
        scores["diversity"] = self.diversity(images)
        return Scored(scores, seen, *self.memorization.closest(images, near))

    def real(self) -> dict:
        """{classifier, inception}: how well test images cover training images, as if they were samples."""
        inception = MISSING if self.inception is None else {**self.inception.real(), "status": "ok"}
        return {"classifier": self.classifier.real(), "inception": inception}

    def _classes(self, seen: np.ndarray) -> dict[str, float]:
        """Total variation to the classes that the judge sees in the training split, and what n random images of it have."""
        sets = consecutive_sets(len(seen), self.sizes.n)
        return {
            "tv": float(np.mean([total_variation(seen[s], self.class_shares) for s in sets])),
            "tv_floor": total_variation_floor(self.class_shares, self.sizes.n),
        }

    def _inception(self, images: np.ndarray, name: str) -> Features:
        features, logits = self.network(images, name)
        return Features(features, logits.double().softmax(1).numpy())


def check_samples(images: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    """Raises InputError, naming the file of samples, unless they are uint8 (N, *shape)."""
    if np.issubdtype(images.dtype, np.floating) and not np.isfinite(images).all():
        bad = int((~np.isfinite(images.reshape(len(images), -1)).all(1)).sum())
        raise InputError(
            f"{bad} of {len(images)} images are NaN or infinite; run `dvc repro -f sample_{name}`", key=f"samples/{name}.npz"
        )
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise InputError(
            f"holds {images.dtype} images of shape {images.shape[1:]}, the data is uint8 of shape "
            f"{shape}; run `dvc repro sample_{name}`",
            key=f"samples/{name}.npz",
        )


def _accuracy(seen: np.ndarray, labels: np.ndarray | None) -> dict[str, float]:
    return {} if labels is None else {"accuracy": float((seen == labels).mean())}
