"""Which of the levels 0..T a sampler visits: an array from the noisiest down to 0, strictly falling."""

from collections.abc import Callable
from typing import Annotated

import numpy as np

from ddpm.files import InputError
from ddpm.params import OneOf, lookup


def leading(total: int, steps: int) -> np.ndarray:
    """1 + k (T // S): every (T // S)-th level, counted from the cleanest (Song et al. 2021, app. D.3); starts below T."""
    return 1 + (total // steps) * np.arange(steps)[::-1]


def trailing(total: int, steps: int) -> np.ndarray:
    """Evenly spaced levels, counted from T, so that the first step starts at pure noise (Lin et al. 2024, table 2)."""
    return np.round(total - np.arange(steps) * total / steps).astype(np.int64)


def linspace(total: int, steps: int) -> np.ndarray:
    """Evenly spaced levels with both T and 1 among them (Nichol & Dhariwal 2021, sec. 4)."""
    return np.round(np.linspace(total, 1, steps)).astype(np.int64)


SPACINGS: dict[str, Callable[[int, int], np.ndarray]] = {"leading": leading, "trailing": trailing, "linspace": linspace}
SpacingName = Annotated[str, OneOf(SPACINGS)]


def make_grid(spacing: str, total: int, steps: int) -> np.ndarray:
    """The S + 1 levels that a sampler visits, strictly falling, the last one 0. Raises InputError unless 1 <= steps <= T."""
    if not 1 <= steps <= total:
        raise InputError(f"steps: {steps} sampling steps are not possible with a model of T = {total} (allowed: 1 to {total})")
    return np.append(lookup(SPACINGS, spacing, "spacing")(total, steps), 0)
