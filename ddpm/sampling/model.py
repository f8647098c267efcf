"""A trained diffusion model: how it is loaded, and what its conditioning looks like as tensors."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.core import processes
from ddpm.core.device import limit_threads, open_device
from ddpm.core.files import InputError
from ddpm.core.paths import MODEL_DIR
from ddpm.core.weights import put_weights
from ddpm.diffusion.prediction import check_prediction
from ddpm.diffusion.schedule import Diffusion, NoiseSchedule
from ddpm.networks.captions import captions_of
from ddpm.networks.checkpoints import load_model
from ddpm.networks.power_ema import read_snapshot, snapshot_file
from ddpm.networks.registry import Network
from ddpm.sampling.denoiser import Denoiser, guided, network_denoiser


class DiffusionModel(NamedTuple):
    """A trained network with what samplers and metrics need to use it.

    network: the network, in evaluation mode.
    schedule: the noise schedule that it was trained on.
    prediction: what it predicts, a key of PREDICTIONS.
    data: what its config.json says of its training data: shape [H, W, C], class_names, class_counts and so on.
    supports_cfg: whether training dropped the labels of some images, so that classifier-free guidance is possible.
    distilled_steps: the number of DDIM steps that it was distilled for; None: it takes any number.
    """

    network: Network
    schedule: NoiseSchedule
    prediction: str
    data: dict
    supports_cfg: bool = False
    distilled_steps: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return tuple(self.data["shape"])

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def learns_variance(self) -> bool:
        """Whether the network also outputs the variance of its steps."""
        return self.network.outputs == 2 * self.shape[2]

    def denoiser(
        self,
        labels: Tensor | None,
        guidance: float = 1.0,
        interval: tuple[float, float] | None = None,
        known: Tensor | None = None,
    ) -> Denoiser:
        """Returns the network as a denoiser, `guided` towards the labels unless guidance is 1.

        labels: class ids (B,) or word ids (B, L), or None.
        known: (B, C + 1, H, W) of `masked_input`, or None; the unconditional prediction of guidance receives it too.
        """
        conditional = network_denoiser(self.network, self.prediction, labels, known)
        if guidance == 1:
            return conditional
        return guided(conditional, network_denoiser(self.network, self.prediction, None, known), guidance, interval)

    def balanced_labels(self, count: int) -> Tensor | None:
        """Returns class ids (N,), 0, 1, 2, ..., 0, 1, ..., or None if the network takes no labels; for pictures."""
        return torch.arange(count, device=self.device) % len(self.data["class_names"]) if self.network.takes_labels else None

    def proportional_labels(self, count: int) -> Tensor | None:
        """Returns class ids (N,) in the shares of the training split, or None if the network takes no labels; for scores.

        A model that records no class counts gives equal shares. The order is that of `class_sequence`.
        """
        if not self.network.takes_labels:
            return None
        counts = self.data.get("class_counts") or [1] * len(self.data["class_names"])
        return torch.from_numpy(class_sequence(counts, count)).to(self.device)

    def captions(self, labels: Tensor, held_out_captions: bool = False) -> list[str]:
        """Returns a caption for each of the class ids (N,); the templates of a class are used in turn.

        held_out_captions: use the templates that training did not use.
        """
        names = self.data["class_names"]
        of_class, turns = [captions_of(name, held_out_captions) for name in names], [0] * len(names)
        captions = []
        for label in labels.tolist():
            captions.append(of_class[label][turns[label] % len(of_class[label])])
            turns[label] += 1
        return captions

    def word_ids(self, texts: Sequence[str]) -> Tensor:
        """Returns texts as word ids (N, L).

        Raises InputError for a network that takes no text, and for words that it was not trained with.
        """
        if not self.network.takes_text:
            raise InputError("this model takes no text; train one with model.conditioning: text", key="text")
        return self.network.condition.vocabulary.encode(texts).to(self.device)


def from_config(network: Network, config: dict) -> DiffusionModel:
    """Returns a model from a network and the content of its config.json."""
    diffusion = config["diffusion"]
    settings = Diffusion.model_validate({key: diffusion[key] for key in Diffusion.model_fields})
    schedule = settings.make(diffusion["schedule"])
    check_prediction(diffusion["prediction"], schedule)
    supports_cfg = network.takes_labels and config["training"].get("condition_dropout", 0) > 0
    distilled_steps = config.get("distillation", {}).get("steps")
    return DiffusionModel(network, schedule, diffusion["prediction"], config["data"], supports_cfg, distilled_steps)


def load(checkpoint: str | float, device: torch.device, folder: Path = MODEL_DIR) -> DiffusionModel:
    """Loads a checkpoint of a model folder, by its name or the width of its EMA.

    Raises InputError if it is missing or damaged.
    """
    return from_config(*load_model(folder, checkpoint, device))


def at_snapshot(model: DiffusionModel, folder: Path, step: int, width: float) -> DiffusionModel:
    """Returns the model with the EMA that a snapshot of its training holds, one of TRACKED_SIGMA_REL, in its own network."""
    put_weights(read_snapshot(folder, step)[width], model.network, snapshot_file(folder, step), "train")
    return model._replace(network=model.network.to(model.device, memory_format=torch.channels_last).eval())


def open_model(
    checkpoint: str | float = "final", folder: Path = MODEL_DIR, device: str = "auto", threads: int | None = None
) -> DiffusionModel:
    """Opens the device and loads a checkpoint on it, for the command line, the web page and programs; stages use `load`.

    device: a key of DEVICES.
    threads: the number of CPU threads. By default it is OMP_NUM_THREADS, else 1 for a small network and all CPUs for a large one.

    Raises InputError if the device is not available, and as `load` does.
    """
    model = load(checkpoint, open_device(device, threads), folder)
    limit_threads(model.network, model.shape)
    return model


def load_to_score(checkpoint: str | float, device: torch.device) -> DiffusionModel:
    """Loads a checkpoint of models/ddpm whose samples are scored; prints a line if it records no class counts."""
    model = load(checkpoint, device)
    if model.network.takes_labels and not model.data.get("class_counts") and processes.is_main_process():
        print(f"{MODEL_DIR} records no class counts, so all classes are sampled equally often; train again to record them")
    return model


def class_sequence(counts: Sequence[int], length: int) -> np.ndarray:
    """Returns class ids, int64 (length,), in the shares of class counts (K,), evenly spread; equal counts give the ids in turn.

    After any number of ids, each class has occurred as often as its share demands, to less than 1. So consecutive sets hold a
    class equally often, to less than 2, whatever their size. (Tijdeman, The chairman assignment problem, 1980.)
    """
    present = np.flatnonzero(counts)
    images = np.asarray(counts)[present]
    total, scale = images.sum(), max(1, 2 * len(images) - 2)
    used, order = np.zeros_like(images), np.empty(length, np.int64)
    for n in range(length):
        # Those that lag by at least 1 / scale; of these, the first to lag by 1 - 1 / scale.
        lags = scale * ((n + 1) * images - used * total) >= total
        deadlines = (scale * (used + 1) - 1) / images
        order[n] = np.argmin(np.where(lags, deadlines, np.inf))
        used[order[n]] += 1
    return present[order]
