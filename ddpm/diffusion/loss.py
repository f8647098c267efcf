"""The training loss: a mean squared error on the network's output, weighted over the signal-to-noise ratio.

Weights are written for the error of x0, where each is a plain function of the SNR; the weight on the network's own output
follows as w * sigma^2 / det^2, since the error of x0 is sigma / det times the error of the output.
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
    """min(SNR, gamma): easy levels no longer outweigh the rest (Hang et al. 2023, sec. 3.4)."""
    return snr.clamp(max=gamma)


def p2(snr: Tensor, gamma: float = 1.0) -> Tensor:
    """SNR / (1 + SNR)^gamma: levels where only fine detail is lost weigh less (Choi et al. 2022, eq. 8 with k = 1)."""
    return snr / (1 + snr) ** gamma


LOSS_WEIGHTS: dict[str, Callable[..., Tensor]] = {
    "simple": lambda snr: snr,  # a plain MSE of eps: L_simple (Ho et al. 2020, eq. 14)
    "x0": lambda snr: torch.ones_like(snr),  # a plain MSE of x0
    "v": lambda snr: snr + 1,  # a plain MSE of v (Salimans & Ho 2022, sec. 4)
    "flow": lambda snr: (1 + snr.sqrt()) ** 2,  # a plain MSE of eps - x0
    "min_snr": min_snr,
    "p2": p2,
}

LossWeightName = Annotated[str, OneOf(LOSS_WEIGHTS)]
# The weights that leave the squared error of the network's own output as it is.
PLAIN = {"eps": "simple", "x0": "x0", "v": "v", "flow": "flow"}


def make_weight(name: str, gamma: float | None = None) -> Weight:
    """The weight of that name, as a function of the SNR. Raises InputError for a gamma that it does not take."""
    weight = LOSS_WEIGHTS[name]
    if gamma is None:
        return weight
    if "gamma" not in inspect.signature(weight).parameters:
        raise InputError(
            f"{gamma} has no meaning for loss_weight {name!r}; set it to 'auto'", key="train.loss_gamma", where="params.yaml"
        )
    return partial(weight, gamma=gamma)


def check_weight(name: str, schedule: NoiseSchedule) -> None:
    """Raises InputError if the weight is 0 at the last level, so that what sampling starts with would never be learned."""
    last = torch.tensor(schedule[schedule.steps].snr, dtype=torch.float64)
    if LOSS_WEIGHTS[name](last) == 0:
        valid = ", ".join(other for other, weight in LOSS_WEIGHTS.items() if weight(last) > 0)
        raise InputError(
            f"{name!r} is 0 at a level without signal, so with diffusion.zero_terminal_snr the "
            f"network would never see the noise that sampling starts from; use one of {valid}",
            key="train.loss_weight",
            where="params.yaml",
        )


def output_weight(weight: Weight, prediction: str, level: Level) -> Tensor:
    """Weight on the squared error of the network's own output, shape of level.t."""
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
) -> Tensor:
    """Weighted loss of every image, shape (B,).

    x0 and eps are (B, C, H, W), x0 in [-1, 1]; index (B,) holds levels 1..T; labels and known are what the network is told
    beside (`UNet`), or None. A network that puts out 2C channels learns the variance too, from the bound (`_vlb_loss`).
    """
    level = schedule[index]
    x_t = add_noise(x0, eps, level)
    told = (labels,) if known is None else (labels, known)
    output = network(x_t, level.t.to(x0.dtype), *told).float()
    learns_variance = output.shape[1] == 2 * x0.shape[1]
    mean = output[:, : x0.shape[1]]
    error = (mean - target(prediction, x0, eps, level)).square().flatten(1).mean(1)
    loss = error * output_weight(weight, prediction, level).to(error.dtype)
    return loss + _vlb_loss(schedule, index, x0, x_t, output, prediction) if learns_variance else loss


def _vlb_loss(schedule: NoiseSchedule, index: Tensor, x0: Tensor, x_t: Tensor, output: Tensor, prediction: str) -> Tensor:
    """lambda L_vlb, estimated from one of its T terms, (B,). It trains the variance alone: the mean is held fixed
    (Nichol & Dhariwal 2021, sec. 3.1)."""
    mean, spread = output.chunk(2, dim=1)
    found = to_prediction(prediction, torch.cat([mean.detach(), spread], dim=1), x_t, schedule[index])
    bits = vlb_terms_bpd(schedule, index, x0, found.x0.clamp(-1, 1), "learned", found.variance_interp)
    return VLB_WEIGHT * schedule.steps * bits
