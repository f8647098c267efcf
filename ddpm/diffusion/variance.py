"""The variance of the reverse process p(x_s | x_t) for a step from a noisier level t to a cleaner level s."""

from collections.abc import Callable
from typing import Annotated

from torch import Tensor

from ddpm.diffusion.schedule import Level
from ddpm.params import OneOf


def small(t: Level, s: Level) -> Tensor:
    """Variance of the posterior q(x_s | x_t, x0): beta_tilde (Ho et al. 2020, eq. 7), right for data that is a point.

    sigma_s^2 (1 - SNR_t / SNR_s), written without dividing by sigma_s, so that it is 0 at the clean level.
    """
    return s.sigma.square() - (s.sigma.square() * t.alpha / (s.alpha * t.sigma)).square()


def large(t: Level, s: Level) -> Tensor:
    """Variance of q(x_t | x_s): beta (Ho et al. 2020, sec. 3.2), right for data that is white noise; 0 at the clean level.

    Without the exception the last step would add noise to the finished image.
    """
    beta = t.sigma.square() - (t.alpha / s.alpha * s.sigma).square()
    return beta * (s.sigma > 0)


VARIANCES: dict[str, Callable[[Level, Level], Tensor]] = {"small": small, "large": large}
VarianceName = Annotated[str, OneOf(VARIANCES)]
