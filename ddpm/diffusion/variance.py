"""The variance of the reverse process p(x_s | x_t) for a step from a noisier level t to a cleaner level s."""

from collections.abc import Callable
from typing import Annotated

from torch import Tensor

from ddpm.core.params import OneOf
from ddpm.diffusion.schedule import Level, NoiseSchedule, per_image


def _not_negative(variance: float | Tensor) -> float | Tensor:
    # Between two levels that are as good as equal, it is a rounding error of either sign.
    return variance.clamp(min=0) if isinstance(variance, Tensor) else max(0.0, variance)


def small(t: Level, s: Level, variance_interp: Tensor | None = None) -> float | Tensor:
    """Returns beta_tilde, the variance of the posterior q(x_s | x_t, x0) (Ho et al. 2020, eq. 7), exact if the data is one point.

    sigma_s^2 (1 - SNR_t / SNR_s), written without a division by sigma_s, so that it is 0 at the clean level.
    """
    return _not_negative(s.sigma**2 - (s.sigma**2 * t.alpha / (s.alpha * t.sigma)) ** 2)


def large(t: Level, s: Level, variance_interp: Tensor | None = None) -> float | Tensor:
    """Returns beta, the variance of q(x_t | x_s) (Ho et al. 2020, sec. 3.2), exact if the data is white noise.

    It is 0 at the clean level, so that the last step adds no noise to the finished image.
    """
    return _not_negative(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2) * (s.sigma > 0)


def learned(t: Level, s: Level, variance_interp: Tensor | None = None) -> float | Tensor:
    """Returns beta^v beta_tilde^(1 - v) with v = variance_interp, (B, C, H, W) (Nichol & Dhariwal 2021, eq. 15)."""
    return 0.0 if s.sigma == 0 else small(t, s) ** (1 - variance_interp) * large(t, s) ** variance_interp


VARIANCES: dict[str, Callable[..., float | Tensor]] = {"small": small, "large": large, "learned": learned}

VarianceName = Annotated[str, OneOf(VARIANCES)]


def log_variance(name: str, schedule: NoiseSchedule, index: Tensor, x: Tensor, variance_interp: Tensor | None = None) -> Tensor:
    """Returns the log variance of the steps from levels index (B,) to index - 1, for a likelihood; it broadcasts with x.

    The step to the clean level draws no noise, but its density needs a width. As in Nichol & Dhariwal 2021's code, `small` and
    `large` (FIXED_SMALL, FIXED_LARGE) take the posterior's variance of the step before it, and `learned` mixes that with beta_1.
    """
    t, s, above = schedule[index], schedule[index - 1], index.clamp(min=2)
    posterior = small(schedule[above], schedule[above - 1]).log()
    beta = (t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2).log()
    low, high = per_image(posterior, x), per_image(beta, x)
    v = {"small": 0.0, "large": per_image(index > 1, x)}.get(name, variance_interp)
    return low + v * (high - low)
