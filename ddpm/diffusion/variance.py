"""The variance of the reverse process p(x_s | x_t) for a step from a noisier level t to a cleaner level s."""

from collections.abc import Callable
from typing import Annotated

from torch import Tensor

from ddpm.core.params import OneOf
from ddpm.diffusion.schedule import Level, NoiseSchedule, per_image


def small(t: Level, s: Level, variance_interp: Tensor | None = None) -> float | Tensor:
    """Variance of the posterior q(x_s | x_t, x0): beta_tilde (Ho et al. 2020, eq. 7), right for data that is a point.

    sigma_s^2 (1 - SNR_t / SNR_s), written without dividing by sigma_s, so that it is 0 at the clean level.
    """
    return s.sigma**2 - (s.sigma**2 * t.alpha / (s.alpha * t.sigma)) ** 2


def large(t: Level, s: Level, variance_interp: Tensor | None = None) -> float | Tensor:
    """Variance of q(x_t | x_s): beta (Ho et al. 2020, sec. 3.2), right for data that is white noise; 0 at the clean level.

    Without the exception the last step would add noise to the finished image.
    """
    return (t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2) * (s.sigma > 0)


def learned(t: Level, s: Level, variance_interp: Tensor | None = None) -> float | Tensor:
    """The network's choice between the two, in log (Nichol & Dhariwal 2021, eq. 15); mix (B, C, H, W); 0 at the clean level."""
    return 0.0 if s.sigma == 0 else small(t, s) ** (1 - variance_interp) * large(t, s) ** variance_interp


VARIANCES: dict[str, Callable[[Level, Level, Tensor | None], float | Tensor]] = {
    "small": small,
    "large": large,
    "learned": learned,
}

VarianceName = Annotated[str, OneOf(VARIANCES)]


def log_variance(name: str, schedule: NoiseSchedule, index: Tensor, x: Tensor, variance_interp: Tensor | None = None) -> Tensor:
    """log of the variance of the steps from levels index (B,) to index - 1, as a likelihood needs it; broadcasts with x.

    The last step draws no noise, but its density has a width: beta_1, or for the posterior that of the step before
    (Nichol & Dhariwal 2021's code).
    """
    t, s, above = schedule[index], schedule[index - 1], index.clamp(min=2)
    posterior = small(schedule[above], schedule[above - 1]).log()
    beta = (t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2).log()
    low, high = per_image(posterior, x), per_image(beta, x)
    place = {"small": 0.0, "large": 1.0}.get(name, variance_interp)
    return low + place * (high - low)
