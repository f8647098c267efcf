"""A trained diffusion model, as samplers and scores need it: the network with the levels and the meaning of its output."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.diffusion.parameterization import check_prediction
from ddpm.diffusion.schedule import Diffusion, NoiseSchedule
from ddpm.networks.store import load_model
from ddpm.networks.unet import UNet
from ddpm.sampling.denoiser import Denoiser, guided, network_denoiser

FOLDER = Path("models/ddpm")


class DiffusionModel(NamedTuple):
    """network, the noise schedule it was trained on, what it predicts, and its data: shape (H, W, C), class names, identity.

    knows_no_class: whether labels were dropped in training, so that guidance has something to lean away from.
    """

    network: UNet
    schedule: NoiseSchedule
    prediction: str
    data: dict
    knows_no_class: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return tuple(self.data["shape"])

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def learns_variance(self) -> bool:
        """Whether the network puts out the variance of its steps too."""
        return self.network.outputs == 2 * self.shape[2]

    def denoiser(self, labels: Tensor | None, guidance: float = 1.0, interval: tuple[float, float] | None = None) -> Denoiser:
        """The network as a denoiser of images with labels (B,), or None for "no class"; `guided` where guidance is not 1."""
        told = network_denoiser(self.network, self.prediction, labels)
        return told if guidance == 1 else guided(told, network_denoiser(self.network, self.prediction, None), guidance, interval)

    def balanced_labels(self, count: int) -> Tensor | None:
        """Labels (N,) with every class equally often, in turn (0, 1, 2, ..., 0, 1, ...); None if the network takes no class."""
        return torch.arange(count, device=self.device) % len(self.data["class_names"]) if self.network.conditional else None


def from_config(network: UNet, config: dict) -> DiffusionModel:
    """A model from a network and the content of its config.json."""
    diffusion = config["diffusion"]
    settings = Diffusion.model_validate({key: diffusion[key] for key in Diffusion.model_fields})
    schedule = settings.make(diffusion["schedule"])
    check_prediction(diffusion["prediction"], schedule)
    knows_no_class = network.conditional and config["training"].get("label_dropout", 0) > 0
    return DiffusionModel(network, schedule, diffusion["prediction"], config["data"], knows_no_class)


def load(checkpoint: str | float, device: torch.device, folder: Path = FOLDER) -> DiffusionModel:
    """Load a checkpoint of a model folder, by its name or the width of its EMA. Raises InputError if it is missing or damaged."""
    return from_config(*load_model(folder, checkpoint, device))
