"""Oracles of the samplers: a nonlinear fake network, exact denoisers of simple data, the exact distribution of an output."""

import math
from functools import partial

import numpy as np
import torch

from ddpm.diffusion.prediction import Prediction
from ddpm.diffusion.schedule import make_schedule
from ddpm.sampling.denoiser import network_denoiser
from ddpm.sampling.samplers import SAMPLERS, sample

T = 1000
LINEAR = make_schedule("linear", T)


def rule(name, **options):
    """Returns the step rule of a sampler with its options."""
    return partial(SAMPLERS[name].step, **options)


def nonlinear_network(x, t, labels=None):
    """A fake network: nonlinear, since a linear one hides clipping errors, and different at every t."""
    return torch.tanh(1.3 * x) * (1 + t.reshape(-1, 1, 1, 1) / T) - 0.2 * x


def noises(count, shape=(2, 1, 4, 4), seed=0):
    return list(torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def run(step, grid, x, noise=None, denoiser=None, schedule=LINEAR):
    """Returns the final image of a step rule; `noise` is a list, followed by zeros."""
    supply = iter(noise or [])
    denoiser = denoiser or network_denoiser(nonlinear_network, "eps", None)
    *_, last = sample(denoiser, step, schedule, np.asarray(grid, float), x, lambda: next(supply, torch.zeros_like(x)))
    return last.x


def gaussian_denoiser(mu=0.3, s=0.5):
    """Returns the optimal denoiser of x0 ~ N(mu, s^2)."""

    def denoise(x, level):
        like = level.like(x)
        gain = like.alpha * s**2 / (like.alpha**2 * s**2 + like.sigma**2)
        return Prediction(mu + gain * (x - like.alpha * mu), x, level)

    return denoise


def ode_end(x, schedule, start, end, mu=0.3, s=0.5):
    """Returns where the probability flow of x0 ~ N(mu, s^2) moves x, start to end: y = x / alpha keeps its quantile."""
    a, b = schedule[start], schedule[end]
    spread = math.sqrt((s**2 + (b.sigma / b.alpha) ** 2) / (s**2 + (a.sigma / a.alpha) ** 2))
    return b.alpha * (mu + (x / a.alpha - mu) * spread)


def output_law(step, grid, schedule=LINEAR, mu=0.3, s=0.5):
    """Returns the exact mean and standard deviation of the output, which is affine in the start and in every noise.

    One image probes each part: 0 is zero throughout, 1 starts at one, and k + 2 has unit noise in call k.
    """
    count = len(grid) + 2
    x = torch.zeros(count, 1, 1, 1, dtype=torch.float64)
    unit = torch.eye(count, dtype=torch.float64).reshape(count, count, 1, 1, 1)
    out = run(step, grid, x + unit[1], list(unit[2:]), gaussian_denoiser(mu, s), schedule).flatten()
    return float(out[0]), math.sqrt(float((out[1:] - out[0]).square().sum()))
