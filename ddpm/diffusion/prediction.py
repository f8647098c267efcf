"""What the network predicts, and the one linear solve that turns any prediction into x0, and with it eps.

A prediction is a row (a, b): the network's target is a * x0 + b * eps. Together with x_t = alpha * x0 + sigma * eps this is
a 2x2 system in (x0, eps) with determinant alpha * b - sigma * a.
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
    "v": lambda level: (-level.sigma, level.alpha),  # the velocity alpha * eps - sigma * x0 (Salimans & Ho 2022, app. D)
    "flow": lambda level: (-1.0, 1.0),  # the straight path's velocity eps - x0 (Lipman et al. 2023; Liu et al. 2023)
}

PredictionName = Annotated[str, OneOf(PREDICTIONS)]


class Prediction(NamedTuple):
    """What a denoiser makes of a noisy image x_t (B, C, H, W) at a level: the clean image x0, of the same shape.

    The noise follows, since both explain x_t. mix, of networks that learn the variance alone, is the variance's place between
    the posterior's (0) and beta (1), in log; shape of x_t.
    """

    x0: Tensor
    x_t: Tensor
    level: Level
    variance_interp: Tensor | None = None

    @property
    def eps(self) -> Tensor:
        """The noise that x0 leaves of x_t: (x_t - alpha x0) / sigma (needs sigma > 0)."""
        level = self.level.like(self.x_t)
        return combine(1 / level.sigma, self.x_t, -level.alpha / level.sigma, self.x0)


def target(name: str, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """What the network should put out: a * x0 + b * eps, shape of x0."""
    a, b = PREDICTIONS[name](level.like(x0))
    return combine(a, x0, b, eps)


def determinant(name: str, level: Level) -> float | Tensor:
    """det = alpha * b - sigma * a; eps: alpha, x0: -sigma, v: alpha^2 + sigma^2, flow: alpha + sigma."""
    a, b = PREDICTIONS[name](level)
    return level.alpha * b - level.sigma * a


def to_prediction(name: str, output: Tensor, x_t: Tensor, level: Level) -> Prediction:
    """x0 = (b x_t - sigma output) / det from the network's output, at a level where the determinant is not 0.

    x_t is (B, C, H, W); output is (B, C, H, W), or (B, 2C, H, W) of a network that learns the variance: its second half is
    2 * mix - 1 (Nichol & Dhariwal 2021, eq. 15).
    """
    like = level.like(x_t)
    _, b = PREDICTIONS[name](like)
    det = determinant(name, like)
    variance_interp = None
    if output.shape[1] == 2 * x_t.shape[1]:
        output, spread = output.chunk(2, dim=1)
        variance_interp = (spread + 1) / 2
    return Prediction(combine(b / det, x_t, -like.sigma / det, output), x_t, level, variance_interp)


def check_prediction(name: str, schedule: NoiseSchedule) -> None:
    """Raises InputError if that prediction cannot tell x0 at the last level: eps is x_T itself where no signal is left."""
    if determinant(name, schedule[schedule.steps]) == 0:
        raise InputError(
            f"{name!r} is impossible with diffusion.zero_terminal_snr, since at the last level x_t is "
            "the noise and says nothing of x0; use v, x0 or flow",
            key="prediction",
            where="params.yaml",
        )
