"""What the network predicts, and the one linear solve that turns any prediction into x0 and eps.

A prediction is a row (a, b): the network's target is a * x0 + b * eps. Together with x_t = alpha * x0 + sigma * eps this is
a 2x2 system in (x0, eps) with determinant alpha * b - sigma * a.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from ddpm.diffusion.schedule import Level
from ddpm.params import OneOf

Row = tuple[Tensor, Tensor]


def eps_row(level: Level) -> Row:
    """The noise (Ho et al. 2020)."""
    return torch.zeros_like(level.alpha), torch.ones_like(level.alpha)


def x0_row(level: Level) -> Row:
    """The clean image."""
    return torch.ones_like(level.alpha), torch.zeros_like(level.alpha)


def v_row(level: Level) -> Row:
    """The velocity alpha * eps - sigma * x0 (Salimans & Ho 2022, app. D)."""
    return -level.sigma, level.alpha


PREDICTIONS: dict[str, Callable[[Level], Row]] = {"eps": eps_row, "x0": x0_row, "v": v_row}
PredictionName = Annotated[str, OneOf(PREDICTIONS)]


class Prediction(NamedTuple):
    """The network's view of a noisy image: the clean image and the noise, each (B, C, H, W), with x_t = alpha x0 + sigma eps."""

    x0: Tensor
    eps: Tensor


def target(name: str, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """What the network should put out: a * x0 + b * eps, shape of x0."""
    a, b = PREDICTIONS[name](level.like(x0))
    return a * x0 + b * eps


def determinant(name: str, level: Level) -> Tensor:
    """det = alpha * b - sigma * a; eps: alpha, x0: -sigma, v: alpha^2 + sigma^2."""
    a, b = PREDICTIONS[name](level)
    return level.alpha * b - level.sigma * a


def solve(name: str, output: Tensor, x_t: Tensor, level: Level) -> Prediction:
    """x0 and eps from the network's output and x_t, both (B, C, H, W), at a level where the determinant is not 0."""
    level = level.like(x_t)
    a, b = PREDICTIONS[name](level)
    det = determinant(name, level)
    return Prediction((b * x_t - level.sigma * output) / det, (level.alpha * output - a * x_t) / det)


def from_x0(x0: Tensor, x_t: Tensor, level: Level) -> Prediction:
    """The prediction that has this x0 and still explains x_t (needs sigma > 0): used after x0 was clipped."""
    level = level.like(x_t)
    return Prediction(x0, (x_t - level.alpha * x0) / level.sigma)
