"""The training loss: a mean squared error of the network's output, weighted by a function of the signal-to-noise ratio.

A loss weight w(SNR) applies to the squared error of x0, whatever the network predicts. The error of x0 is sigma / det times the
error of the output (prediction.py), so the weight on the output is w(SNR) sigma^2 / det^2.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.core.params import OneOf
from ddpm.diffusion.prediction import determinant, target, to_prediction
from ddpm.diffusion.schedule import Level, NoiseSchedule, add_noise
from ddpm.diffusion.vlb import vlb_terms_bpd

# lambda of the hybrid loss L_simple + lambda L_vlb (Nichol & Dhariwal 2021, sec. 3.1).
VLB_WEIGHT = 1e-3
Weight = Callable[[Tensor], Tensor]
Network = Callable[..., Tensor]


def min_snr(snr: Tensor, gamma: float = 5.0) -> Tensor:
    """Returns min(SNR, gamma), which limits the weight of levels with little noise (Hang et al. 2023, sec. 3.4)."""
    return snr.clamp(max=gamma)


def p2(snr: Tensor, gamma: float = 1.0) -> Tensor:
    """Returns SNR / (1 + SNR)^gamma, which lowers the weight of levels with little noise (Choi et al. 2022, eq. 8 with k = 1)."""
    return snr / (1 + snr) ** gamma


LOSS_WEIGHTS: dict[str, Callable[..., Tensor]] = {
    "simple": lambda snr: snr,  # the MSE of eps: L_simple (Ho et al. 2020, eq. 14)
    "x0": lambda snr: torch.ones_like(snr),  # the MSE of x0
    "v": lambda snr: snr + 1,  # the MSE of v (Salimans & Ho 2022, sec. 4)
    "flow": lambda snr: (1 + snr.sqrt()) ** 2,  # the MSE of eps - x0
    "min_snr": min_snr,
    "p2": p2,
}

LossWeightName = Annotated[str, OneOf(LOSS_WEIGHTS)]
# The weight of each prediction with which the loss is the unweighted MSE of the network's output.
PLAIN = {"eps": "simple", "x0": "x0", "v": "v", "flow": "flow"}


def make_weight(name: str, gamma: float | None = None) -> Weight:
    """Returns the weight of that name, a function of the SNR. Raises InputError for a gamma that it does not take."""
    weight = LOSS_WEIGHTS[name]
    if gamma is None:
        return weight
    if "gamma" not in inspect.signature(weight).parameters:
        message = f"{gamma} has no meaning for loss_weight {name!r}; set it to 'auto'"
        raise InputError(message, key="train.loss_gamma", where="params.yaml")
    return partial(weight, gamma=gamma)


def check_weight(name: str, schedule: NoiseSchedule) -> None:
    """Raises InputError if the weight is 0 at the last level: the network would not learn the level where sampling starts."""
    last = torch.tensor(schedule[schedule.steps].snr, dtype=torch.float64)
    if LOSS_WEIGHTS[name](last) == 0:
        valid = ", ".join(other for other, weight in LOSS_WEIGHTS.items() if weight(last) > 0)
        message = f"{name!r} is 0 at the last level of diffusion.zero_terminal_snr, where sampling starts; use one of {valid}"
        raise InputError(message, key="train.loss_weight", where="params.yaml")


def output_weight(weight: Weight, prediction: str, level: Level) -> Tensor:
    """Returns the weight on the squared error of the network's output, w(SNR) sigma^2 / det^2, of the shape of level.t."""
    return weight(level.snr) * (level.sigma / determinant(prediction, level)) ** 2


def diffusion_loss(
    network: Network,
    schedule: NoiseSchedule,
    x0: Tensor,
    labels: Tensor | None,
    index: Tensor,
    eps: Tensor,
    prediction: str,
    weight: Weight,
    known: Tensor | None = None,
    augmentation: Tensor | None = None,
) -> Tensor:
    """Returns the weighted loss of every image, (B,); for a network with 2C output channels, the hybrid loss (`_vlb_loss`).

    x0: clean images in [-1, 1], (B, C, H, W). index: their levels, 1..T, (B,). eps: standard normal noise of the shape of x0.
    prediction: a key of PREDICTIONS. weight: from `make_weight`.
    labels, known, augmentation: conditioning passed to the network (see networks.registry.Network), or None.

    >>> from ddpm.diffusion.schedule import make_schedule
    >>> schedule, x0, eps = make_schedule("linear", 1000), torch.rand(8, 3, 16, 16), torch.randn(8, 3, 16, 16)
    >>> index, network = torch.randint(1, schedule.steps + 1, (8,)), lambda x, t, labels: torch.zeros_like(x)
    >>> loss = diffusion_loss(network, schedule, x0, None, index, eps, "eps", make_weight("simple"))
    >>> loss.allclose(eps.square().mean((1, 2, 3)))  # the error of a network that predicts no noise
    True
    """
    level = schedule[index]
    x_t = add_noise(x0, eps, level)
    optional = {name: value for name, value in (("known", known), ("augmentation", augmentation)) if value is not None}
    output = network(x_t, level.t.to(x0.dtype), labels, **optional).float()
    learns_variance = output.shape[1] == 2 * x0.shape[1]
    mean = output[:, : x0.shape[1]]
    error = (mean - target(prediction, x0, eps, level)).square().flatten(1).mean(1)
    loss = error * output_weight(weight, prediction, level).to(error.dtype)
    return loss + _vlb_loss(schedule, index, x0, x_t, output, prediction) if learns_variance else loss


def _vlb_loss(schedule: NoiseSchedule, index: Tensor, x0: Tensor, x_t: Tensor, output: Tensor, prediction: str) -> Tensor:
    """Returns lambda L_vlb, estimated from one of its T terms, (B,).

    The gradient reaches the variance only, not the mean (Nichol & Dhariwal 2021, sec. 3.1).
    """
    mean, variance = output.chunk(2, dim=1)
    predicted = to_prediction(prediction, torch.cat([mean.detach(), variance], dim=1), x_t, schedule[index])
    bits = vlb_terms_bpd(schedule, index, x0, predicted.x0.clamp(-1, 1), "learned", predicted.variance_interp)
    return VLB_WEIGHT * schedule.steps * bits
