"""From a network to a denoiser: a function (x, level) -> Prediction. Wrappers take a denoiser and give a denoiser."""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor, nn

from ddpm.core.files import InputError
from ddpm.core.params import OneOf
from ddpm.diffusion.prediction import Prediction, to_prediction
from ddpm.diffusion.schedule import Level
from ddpm.sampling.names import THRESHOLD_NAMES

Denoiser = Callable[[Tensor, Level], Prediction]
Limit = Callable[[Tensor, float], Tensor]


def network_denoiser(network: nn.Module, prediction: str, labels: Tensor | None = None, known: Tensor | None = None) -> Denoiser:
    """The network as a denoiser. x is (B, C, H, W) in the network's range [-1, 1]; labels (B, ...) and known (B, C + 1, H, W)
    are what it is told beside, or None (`UNet`); a network that takes no known pixels is not given any.

    Raises InputError if there is not one label per image.
    """
    told = (labels,) if known is None else (labels, known)

    def denoise(x: Tensor, level: Level) -> Prediction:
        for name, values in zip(("labels", "known"), told, strict=False):
            if values is not None and len(values) != len(x):
                raise InputError(f"shape {tuple(values.shape)} does not fit {len(x)} images; give one per image", key=name)
        t = x.new_full((len(x),), level.t) if isinstance(level.t, float) else level.t.to(x)
        output = network(x, t, *told)
        return to_prediction(prediction, output.to(x.dtype), x, level)

    return denoise


def clip(x0: Tensor, quantile: float = 1.0) -> Tensor:
    """x0 clamped to [-1, 1], the range of images (Ho et al. 2020's code)."""
    return x0.clamp(-1, 1)


def dynamic(x0: Tensor, quantile: float) -> Tensor:
    """Dynamic thresholding: each image's |x0| clamped at its own quantile and divided by it, where that exceeds 1, so that
    strong guidance does not saturate the picture (Saharia et al. 2022, sec. 2.3)."""
    limit = torch.quantile(x0.abs().flatten(1), quantile, dim=1).clamp(min=1).reshape((-1,) + (1,) * (x0.ndim - 1))
    return torch.minimum(torch.maximum(x0, -limit), limit) / limit


THRESHOLDS: dict[str, Limit | None] = {"none": None, "clip": clip, "dynamic": dynamic}
assert tuple(THRESHOLDS) == THRESHOLD_NAMES
ThresholdName = Annotated[str, OneOf(THRESHOLDS)]


def thresholded(denoiser: Denoiser, name: str = "clip", quantile: float = 1.0) -> Denoiser:
    """x0 brought into the range of images; eps agrees with it by its definition (Ho et al. 2020's code clips x0 too)."""
    limit = THRESHOLDS[name]
    if limit is None:
        return denoiser

    def denoise(x: Tensor, level: Level) -> Prediction:
        found = denoiser(x, level)
        return found._replace(x0=limit(found.x0, quantile))

    return denoise


def guided(conditional: Denoiser, unconditional: Denoiser, scale: float, interval: tuple[float, float] | None = None) -> Denoiser:
    """Classifier-free guidance: unconditional + scale * (conditional - unconditional) (Ho & Salimans 2022, eq. 6,
    whose w is scale - 1).

    scale 0 is unconditional, 1 conditional, both at the cost of one evaluation; more leans on the class. `interval` limits it
    to levels with sigma / alpha inside (Kynkaanniemi et al. 2024); elsewhere the conditional prediction stands.
    """

    def denoise(x: Tensor, level: Level) -> Prediction:
        here = scale if inside(level, interval) else 1.0
        if here in (0.0, 1.0):
            return (conditional if here else unconditional)(x, level)
        told, untold = conditional(x, level), unconditional(x, level)
        return told._replace(x0=torch.lerp(untold.x0, told.x0, here))

    return denoise


def inside(level: Level, interval: tuple[float, float] | None) -> bool:
    """Whether sigma / alpha of a single level lies in the interval; None is all levels."""
    return interval is None or interval[0] * level.alpha <= level.sigma <= interval[1] * level.alpha


def one_step(denoiser: Denoiser, x_t: Tensor, level: Level) -> Tensor:
    """x0_hat in [-1, 1] from a single evaluation at x_t."""
    with torch.inference_mode():
        return denoiser(x_t, level).x0.clamp(-1, 1)
