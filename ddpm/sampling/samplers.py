"""Samplers: step rules over a grid of levels, and the one driver that runs them all.

The rules that follow an ODE think in y = x / alpha over r = sigma / alpha, where it reads dy/dr = eps (Song et al. 2021, eq. 14;
Karras et al. 2022, eq. 4), and write each step in x, so that neither alpha = 0 nor sigma = 0 is divided by.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.core.params import OneOf
from ddpm.diffusion.prediction import Prediction
from ddpm.diffusion.schedule import Level, NoiseSchedule, add_more_noise, combine
from ddpm.diffusion.variance import VARIANCES, small
from ddpm.sampling.denoiser import Denoiser

Noise = Callable[[], Tensor]


# (x, prediction at x, level of x, level to reach, fresh noise, memory of this run) -> x at the level to reach
StepRule = Callable[[Tensor, Prediction, Level, Level, Noise, dict], Tensor]


def _towards(x: Tensor, x0: Tensor, t: Level, s: Level, noise: float) -> Tensor:
    """alpha_s x0 + noise * eps, with the eps = (x - alpha_t x0) / sigma_t that explains x at t."""
    return combine(noise / t.sigma, x, s.alpha - noise * t.alpha / t.sigma, x0)


def ddim_step(x: Tensor, prediction: Prediction, t: Level, s: Level, noise: Noise, memory: dict, *, eta: float) -> Tensor:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z with std = eta sqrt(beta_tilde) (Song et al. 2021, eq. 12, 16).

    eta = 0 is deterministic; eta = 1 has the posterior's variance, and over all T levels is the DDPM sampler.
    """
    std = eta * math.sqrt(small(t, s))
    mean = _towards(x, prediction.x0, t, s, math.sqrt(max(0.0, s.sigma**2 - std**2)))
    return mean.add(noise(), alpha=std) if std > 0 else mean


def ancestral_step(x: Tensor, prediction: Prediction, t: Level, s: Level, noise: Noise, memory: dict, *, variance: str) -> Tensor:
    """The posterior's mean plus noise of the chosen variance (Ho et al. 2020, algorithm 2 and eq. 7)."""
    # The mean of q(x_s | x_t, x0) is the DDIM step of eta = 1 without its noise; its factor of eps, simplified.
    mean = _towards(x, prediction.x0, t, s, s.sigma**2 * t.alpha / (s.alpha * t.sigma))
    return combine(1.0, mean, VARIANCES[variance](t, s, prediction.variance_interp) ** 0.5, noise()) if s.sigma > 0 else mean


def euler_step(x: Tensor, prediction: Prediction, t: Level, s: Level, noise: Noise, memory: dict) -> Tensor:
    """y_s = y_t + (r_s - r_t) eps (Karras et al. 2022, algorithm 1 without its correction): the map of DDIM with eta = 0."""
    return _towards(x, prediction.x0, t, s, s.sigma)


def _move(x: Tensor, eps: Tensor, t: Level, s: Level) -> Tensor:
    """y_s = y_t + (r_s - r_t) eps for any slope eps, from a level with alpha > 0."""
    return combine(s.alpha / t.alpha, x, s.sigma - s.alpha / t.alpha * t.sigma, eps)


def heun_step(x: Tensor, prediction: Prediction, t: Level, s: Level, noise: Noise, memory: dict) -> Tensor:
    """y_s = y_t + (r_s - r_t) (eps_t + eps_s) / 2, with eps_s at where an Euler step leads (Karras et al. 2022, algorithm 1).

    On a grid that stays once at each level (`with_corrector`): the fall is the Euler step, the stay corrects it.
    """
    if s.sigma < t.sigma:
        memory["start"] = x, prediction.eps, t
        return euler_step(x, prediction, t, s, noise, memory)
    start_x, start_eps, start = memory["start"]
    # From alpha = 0, y is infinite and eps constant: the Euler step is all there is.
    return x if start.alpha == 0 else _move(start_x, (start_eps + prediction.eps) / 2, start, s)


def ab2_step(x: Tensor, prediction: Prediction, t: Level, s: Level, noise: Noise, memory: dict) -> Tensor:
    """Adams-Bashforth of order 2 in r: y_s = y_t + h (eps + h / (2 h') (eps - eps')), with h', eps' of the step before
    (k-diffusion's LMS; rhoAB of Zhang & Chen 2023)."""
    eps, before = prediction.eps, memory.get("before")
    memory["before"] = (eps, t) if t.alpha > 0 else None
    if before is None:
        return euler_step(x, prediction, t, s, noise, memory)
    r_s, r_t, r_before = (level.sigma / level.alpha for level in (s, t, before[1]))
    slope = eps + (r_s - r_t) / (2 * (r_t - r_before)) * (eps - before[0])
    return _move(x, slope, t, s)


def dpmpp_2m_step(x: Tensor, prediction: Prediction, t: Level, s: Level, noise: Noise, memory: dict, *, eta: float) -> Tensor:
    """DPM-Solver++ 2M (Lu et al. 2022b, algorithm 2); eta = 1 solves the SDE instead (their SDE-DPM-Solver++ 2M).

    With h the step in log(alpha / sigma) and shrink = e^-h; the step to the clean level is of first order.
    """
    shrink = s.sigma * t.alpha / (s.alpha * t.sigma)
    h = -math.log(shrink) if shrink > 0 else math.inf
    x0, before = prediction.x0, memory.get("before")
    memory["before"] = prediction.x0, h
    if before is not None and s.sigma > 0:
        x0 = x0 + h / (2 * before[1]) * (x0 - before[0])
    mean = combine(s.sigma / t.sigma * shrink**eta, x, s.alpha * (1 - shrink ** (1 + eta)), x0)
    std = s.sigma * math.sqrt(1 - shrink ** (2 * eta))
    return mean.add(noise(), alpha=std) if std > 0 else mean


class Sampler(NamedTuple):
    """A step rule by its name in params.yaml, and how people write it."""

    label: str
    step: Callable[..., Tensor]
    options: tuple[str, ...] = ()  # that a user may set
    twice: bool = False  # evaluates at each level once more, to correct the step to it
    multistep: bool = False  # builds on the step before, which a climb makes it forget
    stochastic: bool = False  # draws noise whatever its options


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler("DDIM", ddim_step, options=("eta",)),
    "euler": Sampler("Euler", euler_step),
    "heun": Sampler("Heun", heun_step, twice=True),
    "ab2": Sampler("AB2", ab2_step, multistep=True),
    "dpmpp_2m": Sampler("DPM-Solver++ 2M", partial(dpmpp_2m_step, eta=0.0), multistep=True),
    "dpmpp_2m_sde": Sampler("SDE-DPM-Solver++ 2M", partial(dpmpp_2m_step, eta=1.0), multistep=True, stochastic=True),
}


SamplerName = Annotated[str, OneOf(SAMPLERS)]


class Frame(NamedTuple):
    """The state after a step: the position that x is at, x (B, C, H, W), and the prediction of x0 that led there."""

    position: float
    x: Tensor
    x0: Tensor


@torch.inference_mode()
def sample(
    denoiser: Denoiser, rule: StepRule, schedule: NoiseSchedule, grid: np.ndarray, x: Tensor, noise: Noise
) -> Iterator[Frame]:
    """Walk x (B, C, H, W) along the grid of positions with the step rule, yielding a Frame after each evaluation.

    x starts as noise at grid[0]; `noise` gives fresh standard normal noise of the shape of x. Where the grid climbs, noise is
    added by the forward process, and the rule's memory of what came before is dropped.
    """
    levels = [schedule[position] for position in grid.tolist()]
    memory: dict = {}
    for (t, s), position in zip(pairwise(levels), grid[1:].tolist(), strict=True):
        if s.sigma > t.sigma:
            x = add_more_noise(x, noise(), t, s)
            memory.clear()
        else:
            prediction = denoiser(x, t)
            x = rule(x, prediction, t, s, noise, memory)
            yield Frame(position, x, prediction.x0)
