"""What the network predicts, and the linear system that converts every prediction to x0 and eps.

A prediction is a pair of coefficients (a, b): the network's target is a x0 + b eps. With x_t = alpha x0 + sigma eps this is a 2x2
system in (x0, eps), with det = alpha b - sigma a:

    x0 = (b x_t - sigma output) / det,     eps = (alpha output - a x_t) / det.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

from torch import Tensor

from ddpm.core.files import InputError
from ddpm.core.params import OneOf
from ddpm.diffusion.schedule import Level, NoiseSchedule, combine

Coefficients = tuple[float | Tensor, float | Tensor]

PREDICTIONS: dict[str, Callable[[Level], Coefficients]] = {
    "eps": lambda level: (0.0, 1.0),  # the noise (Ho et al. 2020)
    "x0": lambda level: (1.0, 0.0),  # the clean image
    "v": lambda level: (-level.sigma, level.alpha),  # alpha eps - sigma x0 (Salimans & Ho 2022, app. D)
    "flow": lambda level: (-1.0, 1.0),  # eps - x0, the velocity of the straight path (Lipman et al. 2023; Liu et al. 2023)
}

PredictionName = Annotated[str, OneOf(PREDICTIONS)]


class Prediction(NamedTuple):
    """The output of a denoiser.

    x0: the predicted clean images, (B, C, H, W).
    x_t: the noisy images that it was given, (B, C, H, W).
    level: the level of x_t.
    variance_interp: the learned variance, as a position from the posterior's (0) to beta (1), in log; the shape of x_t, or None.
    """

    x0: Tensor
    x_t: Tensor
    level: Level
    variance_interp: Tensor | None = None

    @property
    def eps(self) -> Tensor:
        """The predicted noise, (x_t - alpha x0) / sigma; it needs sigma > 0."""
        level = self.level.like(self.x_t)
        return combine(1 / level.sigma, self.x_t, -level.alpha / level.sigma, self.x0)


def target(name: str, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """Returns the target of the network's output, a x0 + b eps, (B, C, H, W)."""
    a, b = PREDICTIONS[name](level.like(x0))
    return combine(a, x0, b, eps)


def determinant(name: str, level: Level) -> float | Tensor:
    """Returns det = alpha b - sigma a: alpha for eps, -sigma for x0, alpha^2 + sigma^2 for v, alpha + sigma for flow."""
    a, b = PREDICTIONS[name](level)
    return level.alpha * b - level.sigma * a


def to_prediction(name: str, output: Tensor, x_t: Tensor, level: Level) -> Prediction:
    """Returns the Prediction with x0 = (b x_t - sigma output) / det, at a level where det is not 0.

    output: (B, C, H, W), or (B, 2C, H, W) with a learned variance: the second half is 2 variance_interp - 1 (Nichol & Dhariwal
    2021, eq. 15). x_t: (B, C, H, W).

    >>> import torch
    >>> x0, eps = torch.rand(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    >>> level = Level(t=400.0, alpha=0.6, sigma=0.8)
    >>> output = target("v", x0, eps, level)  # of a network without error
    >>> to_prediction("v", output, 0.6 * x0 + 0.8 * eps, level).x0.allclose(x0, atol=1e-5)
    True
    """
    like = level.like(x_t)
    _, b = PREDICTIONS[name](like)
    det = determinant(name, like)
    variance_interp = None
    if output.shape[1] == 2 * x_t.shape[1]:
        output, variance = output.chunk(2, dim=1)
        variance_interp = (variance + 1) / 2
    return Prediction(combine(b / det, x_t, -like.sigma / det, output), x_t, level, variance_interp)


def check_prediction(name: str, schedule: NoiseSchedule) -> None:
    """Raises InputError if det is 0 at the last level: without signal, eps is x_T itself and does not determine x0."""
    if determinant(name, schedule[schedule.steps]) == 0:
        message = f"{name!r} does not determine x0 at the last level of diffusion.zero_terminal_snr; use v, x0 or flow"
        raise InputError(message, key="prediction", where="params.yaml")
