"""The in-domain classifier: a small network, trained on the same data, whose features replace those of the Inception network.

With fewer than two classes it learns orientations of the images instead (pretext.py), and predicts no classes.
"""

import itertools
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ddpm.core import processes
from ddpm.core.device import limit_threads
from ddpm.core.files import InputError, read_json, sha256, write_json
from ddpm.core.params import OrWord, Section
from ddpm.core.paths import CLASSIFIER_DIR
from ddpm.core.progress import Progress
from ddpm.core.seeds import seed_of
from ddpm.core.weights import load_weights, save_weights
from ddpm.data.images import to_model_range, to_tensor
from ddpm.data.prepared import Prepared
from ddpm.features.pretext import CLASSES, VIEWS, check_features, failed, trained_on, views

WEIGHTS, CONFIG = "classifier.safetensors", "config.json"
FEATURES = 64
PREDICT_BATCH = 500


class TrainClassifier(Section):
    """The `train_classifier` section."""

    epochs: Annotated[int, Field(ge=1, le=10**6)]
    batch_size: Annotated[int, Field(ge=2, le=10**6)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    max_shift: Annotated[int, Field(ge=0, le=256)]
    required_accuracy: Annotated[Annotated[float, Field(ge=0, le=1)] | None, OrWord("auto")]


class Classifier(nn.Module):
    """Four convolutions with batch norm and two poolings; 64 features after ReLU and the average over the image.

    Input (B, C, H, W) in [-1, 1]. `maps` returns the activations of the four layers, `features` (B, 64), `forward` logits
    (B, outputs).

    trained_on: what it learned to predict, see `pretext.trained_on`.
    status: "ok", or why its features measure nothing.
    """

    def __init__(self, channels: int, outputs: int, trained_on: str = CLASSES, status: str = "ok"):
        super().__init__()
        self.trained_on, self.status = trained_on, status
        widths = [channels, 32, 32, FEATURES, FEATURES]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in widths[1:])
        self.head = nn.Linear(FEATURES, outputs)

    @property
    def predicts_classes(self) -> bool:
        return self.trained_on == CLASSES

    def maps(self, x: Tensor) -> list[Tensor]:
        """Returns the activations of the four layers, each (B, C_l, H_l, W_l) and >= 0."""
        maps = []
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            maps.append(x)
            if i in (1, 2) and min(x.shape[-2:]) > 1:
                x = F.max_pool2d(x, 2)
        return maps

    def features(self, x: Tensor) -> Tensor:
        return self.maps(x)[-1].mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _make(data: Prepared, status: str = "ok") -> Classifier:
    task = trained_on(data)
    return Classifier(data.shape[2], len(data.class_names) if task == CLASSES else VIEWS, task, status)


def random_shift(images: Tensor, max_shift: int) -> Tensor:
    """Moves each image (B, C, H, W) at random by up to `max_shift` pixels in both directions; the border is replicated."""
    if max_shift == 0:
        return images
    batch, channels, height, width = images.shape
    padded = F.pad(images, (max_shift,) * 4, mode="replicate")
    offset = torch.randint(0, 2 * max_shift + 1, (2, batch, 1, 1), device=images.device)
    rows = (torch.arange(height, device=images.device)[:, None] + offset[0])[:, None]
    columns = (torch.arange(width, device=images.device)[None, :] + offset[1])[:, None]
    index = torch.arange(batch, device=images.device)[:, None, None, None]
    return padded[index, torch.arange(channels, device=images.device)[:, None, None], rows, columns]


def train_classifier(data: Prepared, settings: TrainClassifier, seed: int, device: torch.device, log) -> Classifier:
    """Trains with AdamW and a one-cycle learning rate; calls `log` with a row {epoch, loss, accuracy} after each epoch.

    Without classes, `pretext_accuracy`, the share of test images whose orientation is predicted correctly, is in its place.
    """
    torch.manual_seed(seed_of(seed, "classifier"))
    network = _make(data).to(device, memory_format=torch.channels_last)
    limit_threads(network, data.shape, settings.batch_size)
    key = "accuracy" if network.predicts_classes else "pretext_accuracy"
    images, labels = to_tensor(data.train.images, device), torch.tensor(data.train.labels, device=device)
    # The last batch of an epoch is skipped when it is short: batch norm needs more than one image.
    size = min(settings.batch_size, len(images))
    batches = len(images) // size
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=settings.epochs * batches)
    with Progress("train_classifier", settings.epochs * batches * size, "images") as progress:
        for epoch in range(settings.epochs):
            network.train()
            order = torch.randperm(len(images))[: batches * size].to(device)
            total = torch.zeros((), device=device)
            for index in order.split(size):
                x, target = to_model_range(images[index]), labels[index]
                if not network.predicts_classes:
                    x, target = views(x)
                loss = F.cross_entropy(network(random_shift(x, settings.max_shift)), target, label_smoothing=0.05)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                scheduler.step()
                total += loss.detach()
                progress.advance(size)
            log({"epoch": epoch + 1, "loss": total.item() / batches, key: accuracy(network, data, device)})
    return network.eval()


@torch.inference_mode()
def predict(network: Classifier, images: np.ndarray, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Returns features (N, 64) and probabilities (N, outputs), float64, of uint8 images (N, H, W, C)."""
    network.eval()

    def predict_batch(start: int) -> tuple[np.ndarray, np.ndarray]:
        features = network.features(to_model_range(to_tensor(images[start : start + PREDICT_BATCH], device)))
        return features.cpu().double().numpy(), network.head(features).cpu().double().softmax(1).numpy()

    features, probabilities = zip(*processes.map_over_ranks(range(0, len(images), PREDICT_BATCH), predict_batch), strict=True)
    return np.concatenate(features), np.concatenate(probabilities)


def accuracy(network: Classifier, data: Prepared, device: torch.device) -> float:
    """Returns the share of the test images whose class, or whose orientation, is predicted correctly."""
    images, labels = data.test
    if not network.predicts_classes:
        turned, numbers = views(to_tensor(images))
        images, labels = turned.permute(0, 2, 3, 1).numpy(), numbers.numpy()
    return float((predict(network, images, device)[1].argmax(1) == labels).mean())


def required_accuracy(settings: TrainClassifier, data: Prepared) -> float | None:
    """Returns the test accuracy that the classifier must reach: the setting, or that of the data set, None for unknown ones."""
    if settings.required_accuracy is not None:
        return settings.required_accuracy
    return data.meta["required_accuracy"]


def check_accuracy(reached: float, required: float | None, data: Prepared) -> None:
    """Raises InputError if the classifier is too weak for metrics in its features to mean anything."""
    if required is not None and reached < required:
        raise InputError(
            f"the classifier has a test accuracy of {reached:.2%}, but {data.meta['dataset']} requires {required:.2%}; raise "
            "train_classifier.epochs, or lower train_classifier.required_accuracy and trust the metrics less",
            key="train_classifier",
        )


def check_pretext(network: Classifier, data: Prepared, reached: float, seed: int, device: torch.device) -> dict:
    """Returns {trained_on, pretext_accuracy, check, status} of a network without classes, and sets its status.

    reached: its pretext accuracy. check: `pretext.check_features`. Raises InputError for fewer than 2 images in a split.
    """
    distances = check_features(lambda images: predict(network, images, device)[0], data, seed)
    if missed := failed(distances):
        network.status = (
            f"nothing is measured: the features, trained on {network.trained_on}, do not tell real images from "
            f"{' and '.join(missed)} ones"
        )
    return {"trained_on": network.trained_on, "pretext_accuracy": reached, "check": distances, "status": network.status}


def save_classifier(network: Classifier, data: Prepared, facts: dict, folder: Path = CLASSIFIER_DIR) -> str:
    """Writes weights and config; returns the SHA-256 of the weights, which identifies this classifier.

    facts: {accuracy}, or what `check_pretext` returned.
    """
    save_weights(folder / WEIGHTS, network.state_dict())
    digest = sha256(folder / WEIGHTS)
    # Training with another number of threads gives other bits.
    threads = torch.get_num_threads()
    write_json(folder / CONFIG, {"data": data.identity(), **facts, "sha256": digest, "threads": threads})
    return digest


def load_classifier(data: Prepared, device: torch.device, folder: Path = CLASSIFIER_DIR) -> tuple[Classifier, dict]:
    """Returns the classifier in eval mode, frozen, and its config. Raises InputError if it was trained on other data."""
    config = read_json(folder / CONFIG, "train_classifier")
    if config.get("data") != data.identity():
        raise InputError("was trained on other data than data/prepared holds; run `dvc repro train_classifier`", key=folder)
    network = _make(data, config.get("status", "ok"))
    load_weights(folder / WEIGHTS, network, "train_classifier")
    if config.get("sha256") != sha256(folder / WEIGHTS):
        raise InputError(f"is not the file that {CONFIG} names; run `dvc repro -f train_classifier`", key=folder / WEIGHTS)
    return network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False), config
