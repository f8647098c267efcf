"""Scores of a set of samples, and of the model that drew them, in the key layout of metrics.json."""

from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import ConfigDict, Field
from torch_fidelity.metric_isc import isc_features_to_metric

from ddpm.data.prepared import Prepared
from ddpm.evaluation.distances import consecutive_sets, disjoint_sets, frechet_distance, inception_score
from ddpm.files import InputError
from ddpm.judge.classifier import Classifier, predict
from ddpm.judge.features import Inception
from ddpm.judge.weights import INCEPTION, MISSING, RequireInception, find_weights
from ddpm.networks.store import CheckpointName
from ddpm.params import OrWord


class Evaluate(RequireInception):
    """The `evaluate` section."""

    model_config = ConfigDict(extra="forbid")

    reconstruction_images: Annotated[int, Field(ge=2)]
    likelihood_images: Annotated[int, Field(ge=2)]
    likelihood_levels: Annotated[Annotated[int, Field(ge=1)] | None, OrWord("all")]
    round_trip_images: Annotated[int, Field(ge=1)]
    checkpoint: CheckpointName


class Sizes(NamedTuple):
    """How many images a score is taken over: `n` in a set, and how many disjoint sets of samples there are."""

    n: int
    sets: int


def set_sizes(samples: int, test: int) -> Sizes:
    """The largest n for which both the samples and the test split fill a set: FID falls as 1/N, so both need the same."""
    n = min(samples, test)
    if n < 2:
        raise InputError(f"evaluate: {samples} samples and {test} test images are too few; both need at least 2")
    return Sizes(n, samples // n)


class FeatureSpace:
    """Scores in one feature space; the reference is the full training split, and the test split stands for perfect samples.

    train and test are features (N, D); test_is is the Inception Score of each disjoint set of test images.
    """

    def __init__(self, train: np.ndarray, test: np.ndarray, sizes: Sizes, seed: int):
        self.train, self.test, self.sizes = train, test, sizes
        self.test_sets = disjoint_sets(len(test), sizes.n, seed)
        self.floor = float(np.mean([frechet_distance(test[s], train) for s in self.test_sets]))

    def fid(self, features: np.ndarray) -> dict[str, float]:
        """FID of samples to the training split, mean over disjoint sets of n, beside the floor that n real images reach."""
        sets = consecutive_sets(len(features), self.sizes.n)
        values = [frechet_distance(features[s], self.train) for s in sets]
        fid = float(np.mean(values))
        spread = {"fid_sd": float(np.std(values, ddof=1))} if len(values) >= 3 else {}
        return {
            "fid": fid,
            **spread,
            "fid_floor": self.floor,
            "fid_excess": fid - self.floor,
            "fid_test": frechet_distance(features[sets[0]], self.test),
        }


class Judges:
    """The judges of one data set, with the features of its real images, extracted once."""

    def __init__(self, data: Prepared, judge: Classifier, samples: int, seed: int, device: torch.device):
        self.data, self.judge, self.device = data, judge, device
        self.sizes = set_sizes(samples, len(data.test.images))
        train, _ = predict(judge, data.train.images, device)
        test, test_probabilities = predict(judge, data.test.images, device)
        self.classifier = FeatureSpace(train, test, self.sizes, seed)
        self.is_real = float(np.mean([inception_score(test_probabilities[s]) for s in self.classifier.test_sets]))
        self.inception = None
        if path := find_weights(INCEPTION):
            self.network = Inception(path, device)
            train, _ = self.network(data.train.images, "train")
            test, logits = self.network(data.test.images, "test")
            self.inception = FeatureSpace(train, test, self.sizes, seed)
            self.inception_is_real = _inception_is(logits, self.inception.test_sets)

    def score(self, images: np.ndarray, labels: np.ndarray | None, name: str) -> tuple[dict, np.ndarray]:
        """Scores of samples uint8 (N, H, W, C), and the class that the judge sees in each (N,).

        labels (N,) are the classes asked for; without them there is no accuracy.

        Raises InputError if the samples are not of the data's shape.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.data.shape:
            raise InputError(
                f"samples/{name}.npz: holds {images.dtype} images of shape {images.shape[1:]}, the data is uint8 of shape "
                f"{self.data.shape}; run `dvc repro sample_{name}`"
            )
        features, probabilities = predict(self.judge, images, self.device)
        sets = consecutive_sets(len(images), self.sizes.n)
        scores = {
            "classifier": {
                **self.classifier.fid(features),
                "is": float(np.mean([inception_score(probabilities[s]) for s in sets])),
                "is_real": self.is_real,
            },
            "inception": MISSING,
        }
        if self.inception:
            features, logits = self.network(images, name)
            scores["inception"] = {
                **self.inception.fid(features),
                "is": _inception_is(logits, sets),
                "is_real": self.inception_is_real,
                "status": "ok",
            }
        seen = probabilities.argmax(1)
        if labels is not None:
            scores["accuracy"] = float((seen == labels).mean())
        return scores, seen


def _inception_is(logits: torch.Tensor, sets: list[np.ndarray] | list[slice]) -> float:
    values = [isc_features_to_metric(logits[s], splits=1, shuffle=False)["inception_score_mean"] for s in sets]
    return float(np.mean(values))
