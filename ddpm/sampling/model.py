"""A trained diffusion model, as samplers and scores need it: the network with the levels and the meaning of its output."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.diffusion.schedule import NoiseSchedule, make_schedule
from ddpm.networks.store import load_model
from ddpm.networks.unet import UNet
from ddpm.sampling.denoiser import Denoiser, network_denoiser

FOLDER = Path("models/ddpm")


class DiffusionModel(NamedTuple):
    """network, the noise schedule it was trained on, what it predicts, and its data: shape (H, W, C), class names, identity."""

    network: UNet
    schedule: NoiseSchedule
    prediction: str
    data: dict

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return tuple(self.data["shape"])

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def denoiser(self, labels: Tensor | None) -> Denoiser:
        """The network as a denoiser of images with labels (B,), or None for "no class"."""
        return network_denoiser(self.network, self.prediction, labels)

    def balanced_labels(self, count: int) -> Tensor | None:
        """Labels (N,) with every class equally often, in turn (0, 1, 2, ..., 0, 1, ...); None if the network takes no class."""
        return torch.arange(count, device=self.device) % len(self.data["class_names"]) if self.network.conditional else None


def from_config(network: UNet, config: dict) -> DiffusionModel:
    """A model from a network and the content of its config.json."""
    diffusion = config["diffusion"]
    schedule = make_schedule(diffusion["schedule"], diffusion["timesteps"])
    return DiffusionModel(network, schedule, diffusion["prediction"], config["data"])


def load(checkpoint: str, device: torch.device, folder: Path = FOLDER) -> DiffusionModel:
    """Load a checkpoint (final, best, latest) of a model folder. Raises InputError if it is missing or damaged."""
    return from_config(*load_model(folder, checkpoint, device))
