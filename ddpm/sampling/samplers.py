"""Samplers: step rules over a grid of noise levels, and the one loop that runs them.

The ODE rules solve dy/dr = eps for y = x / alpha over r = sigma / alpha (Song et al. 2021, eq. 14; Karras et al. 2022, eq. 4).
Each step is written in x, so that nothing is divided by alpha = 0 or sigma = 0.
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
from ddpm.diffusion.schedule import Level, NoiseSchedule, add_more_noise, combine
from ddpm.diffusion.variance import VARIANCES, small
from ddpm.sampling.denoiser import Denoiser

Noise = Callable[[], Tensor]
# step(denoiser, x at t, t, s, noise, state, **options) -> (x at s, the last prediction of x0). `noise` draws standard normal
# noise; `state` is a dict that a multistep rule keeps between its steps.
StepRule = Callable[..., tuple[Tensor, Tensor]]


def _towards(x: Tensor, x0: Tensor, t: Level, s: Level, noise: float) -> Tensor:
    """Returns alpha_s x0 + noise * eps, with eps = (x - alpha_t x0) / sigma_t, the noise that x0 implies at t."""
    return combine(noise / t.sigma, x, s.alpha - noise * t.alpha / t.sigma, x0)


def ddim_step(
    denoiser: Denoiser, x: Tensor, t: Level, s: Level, noise: Noise, state: dict, *, eta: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Returns alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z with std = eta sqrt(beta_tilde) (Song et al. 2021, eq. 12, 16).

    eta = 0 is deterministic; eta = 1 has the posterior's variance, and over all T levels is the DDPM sampler.
    """
    x0 = denoiser(x, t).x0
    std = eta * math.sqrt(small(t, s))
    mean = _towards(x, x0, t, s, math.sqrt(max(0.0, s.sigma**2 - std**2)))
    return (mean.add(noise(), alpha=std) if std > 0 else mean), x0


def ancestral_step(
    denoiser: Denoiser, x: Tensor, t: Level, s: Level, noise: Noise, state: dict, *, variance: str = "small"
) -> tuple[Tensor, Tensor]:
    """Returns the posterior's mean plus noise of the chosen variance (Ho et al. 2020, algorithm 2 and eq. 7)."""
    prediction = denoiser(x, t)
    # The mean of q(x_s | x_t, x0) is the DDIM step of eta = 1 without its noise; its factor of eps, simplified.
    mean = _towards(x, prediction.x0, t, s, s.sigma**2 * t.alpha / (s.alpha * t.sigma))
    if s.sigma == 0:
        return mean, prediction.x0
    return combine(1.0, mean, VARIANCES[variance](t, s, prediction.variance_interp) ** 0.5, noise()), prediction.x0


def euler_step(denoiser: Denoiser, x: Tensor, t: Level, s: Level, noise: Noise, state: dict) -> tuple[Tensor, Tensor]:
    """Returns y_s = y_t + (r_s - r_t) eps, the same as DDIM with eta = 0 (Karras et al. 2022, algorithm 1, predictor only)."""
    x0 = denoiser(x, t).x0
    return _towards(x, x0, t, s, s.sigma), x0


def _move(x: Tensor, eps: Tensor, t: Level, s: Level) -> Tensor:
    """Returns x_s for y_s = y_t + (r_s - r_t) eps with any slope eps, from a level with alpha > 0."""
    return combine(s.alpha / t.alpha, x, s.sigma - s.alpha / t.alpha * t.sigma, eps)


def heun_step(denoiser: Denoiser, x: Tensor, t: Level, s: Level, noise: Noise, state: dict) -> tuple[Tensor, Tensor]:
    """Returns y_s = y_t + (r_s - r_t) (eps_t + eps_s) / 2 with eps_s after an Euler step (Karras et al. 2022, algorithm 1)."""
    first = denoiser(x, t)
    euler = _towards(x, first.x0, t, s, s.sigma)
    if not corrects(t, s):
        return euler, first.x0
    second = denoiser(euler, s)
    return _move(x, (first.eps + second.eps) / 2, t, s), second.x0


def corrects(t: Level, s: Level) -> bool:
    """Returns whether `heun_step` evaluates the network at s too: not at sigma = 0, nor from alpha = 0, where y is infinite."""
    return s.sigma > 0 and t.alpha > 0


def ab2_step(denoiser: Denoiser, x: Tensor, t: Level, s: Level, noise: Noise, state: dict) -> tuple[Tensor, Tensor]:
    """Takes a step of Adams-Bashforth of order 2 in r: y_s = y_t + h (eps + h / (2 h') (eps - eps')), with h' and eps' of the
    previous step (k-diffusion's LMS; rhoAB of Zhang & Chen 2023)."""
    prediction, previous = denoiser(x, t), state.get("previous")
    eps = prediction.eps
    state["previous"] = (eps, t) if t.alpha > 0 else None
    if previous is None:
        return _towards(x, prediction.x0, t, s, s.sigma), prediction.x0
    r_s, r_t, r_previous = (level.sigma / level.alpha for level in (s, t, previous[1]))
    slope = eps + (r_s - r_t) / (2 * (r_t - r_previous)) * (eps - previous[0])
    return _move(x, slope, t, s), prediction.x0


def dpmpp_2m_step(
    denoiser: Denoiser, x: Tensor, t: Level, s: Level, noise: Noise, state: dict, *, eta: float
) -> tuple[Tensor, Tensor]:
    """Takes a step of DPM-Solver++ 2M (Lu et al. 2022b, algorithm 2), or with eta = 1 of SDE-DPM-Solver++ 2M.

    With h the step in log(alpha / sigma) and shrink = e^-h; the step to the clean level is of first order.
    """
    shrink = s.sigma * t.alpha / (s.alpha * t.sigma)
    h = -math.log(shrink) if shrink > 0 else math.inf
    predicted, previous = denoiser(x, t).x0, state.get("previous")
    state["previous"] = predicted, h
    x0 = predicted
    if previous is not None and s.sigma > 0:
        x0 = x0 + h / (2 * previous[1]) * (x0 - previous[0])
    mean = combine(s.sigma / t.sigma * shrink**eta, x, s.alpha * (1 - shrink ** (1 + eta)), x0)
    std = s.sigma * math.sqrt(max(0.0, 1 - shrink ** (2 * eta)))
    return (mean.add(noise(), alpha=std) if std > 0 else mean), predicted


class Sampler(NamedTuple):
    """A step rule under its name in params.yaml.

    label: the name in tables and figures.
    step: the step rule.
    options: the arguments of `make_plan` that the rule takes as keywords: eta, variance.
    second_order: evaluates the network twice in each step where `corrects(t, s)`; counted in `SamplingPlan.nfe`.
    multistep: keeps values of the previous step in `state`, which is reset where the grid re-noises.
    stochastic: draws noise whatever its options are.
    """

    label: str
    step: StepRule
    options: tuple[str, ...] = ()
    second_order: bool = False
    multistep: bool = False
    stochastic: bool = False


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler("DDPM", ancestral_step, options=("variance",), stochastic=True),
    "ddim": Sampler("DDIM", ddim_step, options=("eta",)),
    "euler": Sampler("Euler", euler_step),
    "heun": Sampler("Heun", heun_step, second_order=True),
    "ab2": Sampler("AB2", ab2_step, multistep=True),
    "dpmpp_2m": Sampler("DPM-Solver++ 2M", partial(dpmpp_2m_step, eta=0.0), multistep=True),
    "dpmpp_2m_sde": Sampler("SDE-DPM-Solver++ 2M", partial(dpmpp_2m_step, eta=1.0), multistep=True, stochastic=True),
}
SamplerName = Annotated[str, OneOf(SAMPLERS)]


class Frame(NamedTuple):
    """The state after a step.

    position: the position on the grid that x is at.
    x: (B, C, H, W).
    x0: the last prediction of x0 in this step, (B, C, H, W).
    """

    position: float
    x: Tensor
    x0: Tensor


@torch.inference_mode()
def sample(
    denoiser: Denoiser, rule: StepRule, schedule: NoiseSchedule, grid: np.ndarray, x: Tensor, noise: Noise
) -> Iterator[Frame]:
    """Moves x (B, C, H, W) along the grid of positions by the step rule, and yields a Frame after each denoising step.

    x starts as noise at grid[0]; `noise` returns standard normal noise of the shape of x. Where the grid increases, noise is
    added by the forward process, and the state of a multistep rule is reset; state["schedule"] is the schedule, from which a rule
    gets levels between t and s (`NoiseSchedule.position`).

    The denoiser may be any function (x, level) -> Prediction. This one knows that each pixel of the data is normal with mean 0
    and standard deviation 0.5, so its samples have that standard deviation too:

    >>> from ddpm.diffusion.prediction import Prediction
    >>> from ddpm.diffusion.schedule import make_schedule
    >>> from ddpm.sampling.time_grid import make_grid
    >>> def denoiser(x, level):
    ...     return Prediction(0.25 * level.alpha / (0.25 * level.alpha**2 + level.sigma**2) * x, x, level)
    >>> schedule = make_schedule("cosine", 1000)
    >>> noise = lambda: torch.randn(64, 1, 16, 16)
    >>> *_, last = sample(denoiser, SAMPLERS["dpmpp_2m"].step, schedule, make_grid("trailing", schedule, 20), noise(), noise)
    >>> round(last.x.std().item(), 1)
    0.5
    """
    state: dict = {"schedule": schedule}
    for start, end in pairwise(grid.tolist()):
        t, s = schedule[start], schedule[end]
        if end > start:
            x = add_more_noise(x, noise(), t, s)
            state = {"schedule": schedule}
        else:
            x, x0 = rule(denoiser, x, t, s, noise, state)
            yield Frame(end, x, x0)


def no_noise() -> Tensor:
    """The `noise` of a deterministic rule, which must not draw any."""
    raise AssertionError("a deterministic step drew noise")
