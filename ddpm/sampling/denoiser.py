"""Denoisers: functions (x, level) -> Prediction. Wrappers take a denoiser and return one."""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor, nn

from ddpm.core.files import InputError
from ddpm.core.params import OneOf
from ddpm.diffusion.prediction import Prediction, to_prediction
from ddpm.diffusion.schedule import Level

Denoiser = Callable[[Tensor, Level], Prediction]


def network_denoiser(network: nn.Module, prediction: str, labels: Tensor | None = None, known: Tensor | None = None) -> Denoiser:
    """Returns the network as a denoiser of x (B, C, H, W) in the network's range [-1, 1].

    labels: (B, ...), or None.
    known: (B, C + 1, H, W) of `masked_input`, or None, in which case the network is called without.

    The denoiser raises InputError if there is not one label per image.
    """
    conditioning = {"labels": labels} if known is None else {"labels": labels, "known": known}

    def denoise(x: Tensor, level: Level) -> Prediction:
        for name, values in conditioning.items():
            if values is not None and len(values) != len(x):
                raise InputError(f"shape {tuple(values.shape)} does not fit {len(x)} images; give one per image", key=name)
        t = x.new_full((len(x),), level.t) if isinstance(level.t, float) else level.t.to(x).flatten()
        output = network(x, t, *conditioning.values())
        return to_prediction(prediction, output.to(x.dtype), x, level)

    return denoise


def dynamic(x0: Tensor, quantile: float) -> Tensor:
    """Clamps each image's |x0| at its own quantile and divides by it, if that exceeds 1, so that strong guidance does not
    saturate the image (Saharia et al. 2022, sec. 2.3)."""
    limit = torch.quantile(x0.abs().flatten(1), quantile, dim=1).clamp(min=1).reshape((-1,) + (1,) * (x0.ndim - 1))
    return torch.minimum(torch.maximum(x0, -limit), limit) / limit


# Functions (x0, quantile) -> x0.
THRESHOLDS: dict[str, Callable[[Tensor, float], Tensor] | None] = {
    "none": None,
    "clip": lambda x0, quantile: x0.clamp(-1, 1),
    "dynamic": dynamic,
}
ThresholdName = Annotated[str, OneOf(THRESHOLDS)]


def thresholded(denoiser: Denoiser, name: str = "clip", quantile: float = 1.0) -> Denoiser:
    """Returns the denoiser with x0 brought into [-1, 1], as Ho et al. 2020's code clips it; eps follows from x0."""
    threshold = THRESHOLDS[name]
    if threshold is None:
        return denoiser

    def denoise(x: Tensor, level: Level) -> Prediction:
        prediction = denoiser(x, level)
        return prediction._replace(x0=threshold(prediction.x0, quantile))

    return denoise


def guided(conditional: Denoiser, unconditional: Denoiser, scale: float, interval: tuple[float, float] | None = None) -> Denoiser:
    """Returns a denoiser with classifier-free guidance: unconditional + scale * (conditional - unconditional) (Ho & Salimans
    2022, eq. 6, whose w is scale - 1).

    scale: 0 is unconditional and 1 conditional, both at the cost of one evaluation; above 1 amplifies the class.
    interval: guides only at levels with sigma / alpha inside (Kynkaanniemi et al. 2024); elsewhere scale is 1.
    """

    def denoise(x: Tensor, level: Level) -> Prediction:
        scale_here = scale if inside(level, interval) else 1.0
        if scale_here in (0.0, 1.0):
            return (conditional if scale_here else unconditional)(x, level)
        prediction, base = conditional(x, level), unconditional(x, level)
        return prediction._replace(x0=torch.lerp(base.x0, prediction.x0, scale_here))

    return denoise


def inside(level: Level, interval: tuple[float, float] | None) -> bool:
    """Returns whether sigma / alpha of a single level lies in the interval; None is all levels."""
    return interval is None or interval[0] * level.alpha <= level.sigma <= interval[1] * level.alpha


def one_step(denoiser: Denoiser, x_t: Tensor, level: Level) -> Tensor:
    """Returns x0_hat in [-1, 1] from a single evaluation at x_t."""
    with torch.inference_mode():
        return denoiser(x_t, level).x0.clamp(-1, 1)
