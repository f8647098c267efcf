"""Samplers: step rules over a grid of levels, and the one driver that runs them all."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion.parameterization import Prediction
from ddpm.diffusion.schedule import Level, NoiseSchedule
from ddpm.diffusion.variance import VARIANCES, small
from ddpm.sampling.denoiser import Denoiser

# (x, prediction at x, level of x, level to reach, fresh noise, memory of this run) -> x at the level to reach
StepRule = Callable[[Tensor, Prediction, Level, Level, Callable[[], Tensor], dict], Tensor]


def ddim_step(
    x: Tensor, prediction: Prediction, t: Level, s: Level, noise: Callable[[], Tensor], memory: dict, *, eta: float
) -> Tensor:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z with std = eta sqrt(beta_tilde) (Song et al. 2021, eq. 12, 16).

    eta = 0 is deterministic; eta = 1 has the posterior's variance, and over all T levels is the DDPM sampler.
    """
    std = eta * small(t, s).sqrt()
    mean = s.alpha * prediction.x0 + (s.sigma.square() - std.square()).sqrt() * prediction.eps
    return mean + std * noise() if eta > 0 else mean


def ancestral_step(
    x: Tensor, prediction: Prediction, t: Level, s: Level, noise: Callable[[], Tensor], memory: dict, *, variance: str
) -> Tensor:
    """The posterior's mean plus noise of the chosen variance (Ho et al. 2020, algorithm 2 and eq. 7)."""
    # The mean of q(x_s | x_t, x0) is the DDIM step of eta = 1 without its noise.
    mean = s.alpha * prediction.x0 + (s.sigma.square() - small(t, s)).clamp(min=0).sqrt() * prediction.eps
    return mean + VARIANCES[variance](t, s).sqrt() * noise()


SAMPLERS: dict[str, Callable[..., Tensor]] = {"ancestral": ancestral_step, "ddim": ddim_step}


class Frame(NamedTuple):
    """The state after a step: the level index that x is at, x (B, C, H, W), and the prediction of x0 that led there."""

    index: int
    x: Tensor
    x0: Tensor


@torch.inference_mode()
def sample(
    denoiser: Denoiser, rule: StepRule, schedule: NoiseSchedule, grid: np.ndarray, x: Tensor, noise: Callable[[], Tensor]
) -> Iterator[Frame]:
    """Walk x (B, C, H, W) along the grid of level indices with the step rule, yielding a Frame after each step.

    x starts as noise at level grid[0]; `noise` gives fresh standard normal noise of the shape of x.
    """
    # Once per grid. alpha and sigma stay float64 scalars of the CPU: the rules subtract numbers that are nearly equal, and no
    # step waits for a transfer. t alone is an input of the network.
    levels = [schedule[int(i)] for i in grid]
    levels = [level._replace(t=level.t.to(x)) for level in levels]
    memory: dict = {}
    for i in range(len(grid) - 1):
        prediction = denoiser(x, levels[i])
        x = rule(x, prediction, levels[i], levels[i + 1], noise, memory)
        yield Frame(int(grid[i + 1]), x, prediction.x0)


def bind(name: str, **options: float | str) -> StepRule:
    """The step rule of that name with its options (eta, variance) filled in."""
    return partial(SAMPLERS[name], **options)
