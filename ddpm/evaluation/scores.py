"""Scores of a set of samples, and of the model that drew them, in the key layout of metrics.json."""

from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import ConfigDict, Field
from torch_fidelity.metric_isc import isc_features_to_metric

from ddpm.data.batches import to_model_range, to_tensor
from ddpm.data.prepared import Prepared
from ddpm.evaluation.distances import disjoint_sets, frechet_distance, inception_score
from ddpm.evaluation.perceptual import lpips_alex, lpips_classifier
from ddpm.evaluation.reconstruction import FRACTIONS, HEADLINE, WienerFilter, level_at, noisy_pairs, psnr, zero_denoiser
from ddpm.files import InputError
from ddpm.judge.classifier import Classifier, predict
from ddpm.judge.features import Inception, load_lpips_alex
from ddpm.judge.weights import ALEXNET, INCEPTION, RequireInception, find_weights
from ddpm.networks.store import CheckpointName
from ddpm.runtime import seeded
from ddpm.sampling.denoiser import one_step
from ddpm.sampling.model import DiffusionModel

MISSING = {"status": "weights missing"}
BATCH = 250
EXAMPLES = 8


class Evaluate(RequireInception):
    """The `evaluate` section."""

    model_config = ConfigDict(extra="forbid")

    reconstruction_images: Annotated[int, Field(ge=2)]
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
        self.train, self.test, self.sizes, self.seed = train, test, sizes, seed
        self.test_sets = disjoint_sets(len(test), sizes.n, seed)
        self.floor = float(np.mean([frechet_distance(test[s], train) for s in self.test_sets]))

    def fid(self, features: np.ndarray) -> dict[str, float]:
        """FID of samples to the training split, mean over disjoint sets of n, beside the floor that n real images reach."""
        sets = disjoint_sets(len(features), self.sizes.n, self.seed)
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
        sets = disjoint_sets(len(images), self.sizes.n, self.classifier.seed)
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


def _inception_is(logits: torch.Tensor, sets: list[np.ndarray]) -> float:
    values = [isc_features_to_metric(logits[s], splits=1, shuffle=False)["inception_score_mean"] for s in sets]
    return float(np.mean(values))


class Reconstruction(NamedTuple):
    """scores: for metrics.json; curve: rows {fraction, level, method, psnr}; examples: uint8 arrays of the headline level."""

    scores: dict
    curve: list[dict]
    examples: dict[str, torch.Tensor]


def reconstruct(model: DiffusionModel, data: Prepared, judge: Classifier, count: int, seed: int) -> Reconstruction:
    """One-step denoising of held-out images at several levels, by the network, the Wiener filter and "no noise at all".

    A class-conditional network is told the class. The headline level is T / 4; PSNR is the mean over images.
    """
    device, count = model.device, min(count, len(data.test.images))
    chosen = np.sort(disjoint_sets(len(data.test.images), count, seed)[0])
    x0 = to_model_range(to_tensor(data.test.images[chosen], device))
    labels = torch.tensor(data.test.labels[chosen], device=device)
    wiener = WienerFilter(data.train.images, seed)
    generator = seeded("cpu", seed, "reconstruction")
    curve, examples, scores = [], {}, {}
    for fraction in FRACTIONS:
        index = level_at(model.schedule, fraction)
        x_t, level = noisy_pairs(x0, model.schedule, index, generator)
        restored = {
            "network": torch.cat([
                one_step(model.denoiser(y), x, level)
                for x, y in zip(x_t.split(BATCH), labels.split(BATCH), strict=True)
            ]),
            "wiener": wiener(x_t, level),
            "zero": zero_denoiser(x_t, level),
        }  # fmt: skip
        values = {method: float(psnr(image, x0).mean()) for method, image in restored.items()}
        curve += [{"fraction": fraction, "level": index, "method": m, "psnr": v} for m, v in values.items()]
        if fraction == HEADLINE:
            scores = {
                "n": count,
                "level": index,
                "psnr": values["network"],
                "psnr_wiener": values["wiener"],
                "psnr_zero": values["zero"],
                "lpips": _lpips(judge, restored["network"], x0, device),
            }
            examples = {"clean": x0, "noisy": x_t, **restored}
            examples = {name: image[:EXAMPLES] for name, image in examples.items()}
    return Reconstruction(scores, curve, examples)


def _lpips(judge: Classifier, image: torch.Tensor, reference: torch.Tensor, device: torch.device) -> dict:
    scores = {"classifier": float(lpips_classifier(judge, image, reference).mean())}
    path = find_weights(ALEXNET)
    if path is None:
        return {**scores, **MISSING}
    network = load_lpips_alex(path, device)
    pairs = zip(image.split(BATCH), reference.split(BATCH), strict=True)
    return {**scores, "alex": float(torch.cat([lpips_alex(network, a, b) for a, b in pairs]).mean()), "status": "ok"}
