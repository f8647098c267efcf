"""The training loss: a mean squared error on the network's output, weighted over the signal-to-noise ratio.

Weights are written for the error of x0, where each is a plain function of the SNR; the weight on the network's own output
follows as w * sigma^2 / det^2, since the error of x0 is sigma / det times the error of the output.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from ddpm.diffusion.parameterization import determinant, target
from ddpm.diffusion.schedule import Level, NoiseSchedule, add_noise
from ddpm.params import OneOf

LOSS_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "simple": lambda snr: snr,  # a plain MSE of eps: L_simple (Ho et al. 2020, eq. 14)
    "x0": torch.ones_like,  # a plain MSE of x0
    "v": lambda snr: snr + 1,  # a plain MSE of v (Salimans & Ho 2022, sec. 4)
    "min_snr": lambda snr: snr.clamp(max=5.0),  # min(SNR, 5) (Hang et al. 2023)
}
LossWeightName = Annotated[str, OneOf(LOSS_WEIGHTS)]

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def output_weight(weight: str, prediction: str, level: Level) -> Tensor:
    """Weight on the squared error of the network's own output, shape of level.t."""
    return LOSS_WEIGHTS[weight](level.snr) * level.sigma.square() / determinant(prediction, level).square()


def draw_levels(schedule: NoiseSchedule, count: int, device: torch.device) -> Tensor:
    """Level indices (count,), uniform on 1..T, from the device's default generator."""
    return torch.randint(1, schedule.steps + 1, (count,), device=device)


def diffusion_loss(
    network: Network,
    schedule: NoiseSchedule,
    x0: Tensor,
    labels: Tensor | None,
    index: Tensor,
    eps: Tensor,
    prediction: str,
    weight: str,
) -> Tensor:
    """Weighted loss of every image, shape (B,).

    x0 and eps are (B, C, H, W), x0 in [-1, 1]; index (B,) holds levels 1..T; labels (B,) class numbers or None.
    """
    level = schedule[index]
    x_t = add_noise(x0, eps, level)
    output = network(x_t, level.t.to(x0.dtype), labels)
    error = (output.float() - target(prediction, x0, eps, level)).square().flatten(1).mean(1)
    return error * output_weight(weight, prediction, level).to(error.dtype)
