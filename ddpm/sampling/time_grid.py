"""Time grids: the noise levels that a sampler visits, as positions on the levels 0..T from the noisiest down to 0.

A position between two levels is a level too (`NoiseSchedule`). Positions normally decrease; an increase re-noises x. The order of
levels is that of their positions everywhere: sigma is 1 at several levels where alpha^2 is below the precision of float64.
"""

import math
from collections.abc import Callable
from typing import Annotated

import numpy as np

from ddpm.core.files import InputError
from ddpm.core.params import OneOf, lookup
from ddpm.diffusion.schedule import NoiseSchedule


def leading(schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """Returns 1 + k (T // S): every (T // S)-th level from the cleanest on (Song et al. 2021, app. D.2); starts below T."""
    return 1 + (schedule.steps // steps) * np.arange(steps)[::-1]


def trailing(schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """Returns evenly spaced levels from T on, so that the first step starts at pure noise (Lin et al. 2024, table 2)."""
    return np.round(schedule.steps - np.arange(steps) * schedule.steps / steps)


def linspace(schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """Returns evenly spaced levels that include T and 1 (Nichol & Dhariwal 2021, sec. 4)."""
    return np.round(np.linspace(schedule.steps, 1, steps))


def quadratic(schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """Returns squares of evenly spaced numbers, from T to 1, denser towards the image (Song et al. 2021, app. D.2)."""
    return 1 + (schedule.steps - 1) * np.linspace(1, 0, steps) ** 2


def log_snr(schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """Returns positions evenly spaced in the log of the signal-to-noise ratio, from T to 1 (Lu et al. 2022, sec. 3.3)."""
    return _by_log_ratio(schedule, np.linspace(*_log_ratio_range(schedule), steps))


def karras(schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """Returns positions evenly spaced in (sigma / alpha)^(1/7), from T to 1 (Karras et al. 2022, eq. 5)."""
    first, last = (math.exp(-ratio / 7) for ratio in _log_ratio_range(schedule))
    return _by_log_ratio(schedule, -7 * np.log(np.linspace(first, last, steps)))


def _log_ratio_range(schedule: NoiseSchedule) -> tuple[float, float]:
    """Returns log(alpha / sigma) of level T (of level T - 1 at zero terminal SNR, where it is -inf) and of level 1."""
    return float(schedule.log_ratio[np.isfinite(schedule.log_ratio)][-1]), float(schedule.log_ratio[0])


def _by_log_ratio(schedule: NoiseSchedule, log_ratio: np.ndarray) -> np.ndarray:
    positions = schedule.position(log_ratio)
    positions[0] = schedule.steps
    return positions


SPACINGS: dict[str, Callable[[NoiseSchedule, int], np.ndarray]] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "quadratic": quadratic,
    "log_snr": log_snr,
    "karras": karras,
}
SpacingName = Annotated[str, OneOf(SPACINGS)]


def make_grid(spacing: str, schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """Returns the steps + 1 positions, strictly decreasing to 0. Raises InputError unless 1 <= steps <= T."""
    if not isinstance(steps, int | np.integer) or not 1 <= steps <= schedule.steps:
        raise InputError(
            f"{steps!r} sampling steps are not possible with a model of T = {schedule.steps} (allowed: 1 to {schedule.steps})",
            key="steps",
        )
    return np.append(lookup(SPACINGS, spacing, "spacing")(schedule, steps), 0.0)


MAX_CHURN = math.sqrt(2) - 1


def with_churn(grid: np.ndarray, schedule: NoiseSchedule, churn: float) -> np.ndarray:
    """Returns the grid with re-noising before each step, by a factor 1 + min(churn / S, sqrt(2) - 1) in sigma / alpha
    (S_churn of Karras et al. 2022, algorithm 2), but not above T."""
    factor = min(churn / (len(grid) - 1), MAX_CHURN)
    visits = []
    for position in grid[:-1].tolist():
        level = schedule[position]
        log_ratio = math.log(level.alpha / level.sigma) if level.alpha > 0 else -math.inf
        noisier = float(schedule.position(np.array(log_ratio - math.log1p(factor))))
        visits += [position, noisier] if noisier > position else [position]
    return np.array([*visits, 0.0])


def denoising_steps(grid: np.ndarray) -> int:
    """Returns the number of steps of the grid that denoise: those to a lower position. The others re-noise."""
    return int((np.diff(grid) < 0).sum())
