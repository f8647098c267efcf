"""Which noise levels a sampler visits: positions on the levels 0..T, from the noisiest down to 0.

A position between two levels is a level too (`NoiseSchedule`). A grid may climb, which adds noise again, and may stay, which a
sampler that evaluates twice per step uses for its correction.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.diffusion.schedule import Level, add_noise
from ddpm.sampling.denoiser import Denoiser
from ddpm.sampling.samplers import Noise, StepRule


def with_repaint_jumps(grid: np.ndarray, jump: int, resamples: int) -> np.ndarray:
    """The falling grid with climbs, so that each stretch of `jump` steps is walked `resamples` times: what inpainting fills in
    comes to agree with the known pixels (Lugmayr et al. 2022, sec. 4.2; their j and r, and their code's `get_schedule_jump`).

    Climbs start at the last level before 0 and at every `jump`-th one above it, as far as `jump` steps lead no higher than the
    start of the grid: the step to 0 is walked once, and so are up to `jump` - 1 steps at the noisy end. A climb is one move,
    whose noise has the law of theirs, step by step. resamples = 1 gives the grid itself. Where the grid is `with_corrector` too,
    that comes last. Raises InputError for jump or resamples below 1, or a jump that the grid has no room for.
    """
    steps = len(grid) - 1
    if resamples < 1:
        raise InputError(f"{resamples} is not possible; give 1, which never climbs, or more", key="resamples")
    if jump < 1 or (resamples > 1 and jump >= steps):
        raise InputError(
            f"{jump} steps are no climb on a grid of {steps} steps; give at least 1, and fewer than the grid has", key="jump"
        )
    left = dict.fromkeys(range(steps - 1, jump - 1, -jump), resamples - 1)
    visits, index = [], 0
    while index <= steps:
        visits.append(grid[index])
        climbs = left.get(index, 0) > 0
        if climbs:
            left[index] -= 1
        index += -jump if climbs else 1
    return np.array(visits)


def inpainting(rule: StepRule, image: Tensor, mask: Tensor, noise: Noise) -> StepRule:
    """A step rule that keeps the known pixels, where mask is 1, and lets `rule` fill the others (Lugmayr et al. 2022, eq. 8).

    On a grid with climbs (`grid.with_repaint_jumps`) it is RePaint, which makes the two agree better than a single descent does.
    image (B, C, H, W) in [-1, 1]; mask (B or 1, 1 or C, H, W) of 0 and 1. `noise` is drawn for the known pixels alone, so that
    an empty mask leaves the sampler as it is. Raises InputError for a mask of another shape.
    """
    if mask.ndim != 4 or any(m not in (1, n) for m, n in zip(mask.shape, image.shape, strict=True)):
        raise InputError(
            f"shape {tuple(mask.shape)} does not fit images of {tuple(image.shape)}; both are (B, C, H, W)", key="mask"
        )

    def step(denoiser: Denoiser, x: Tensor, t: Level, s: Level, fresh: Noise, state: dict) -> tuple[Tensor, Tensor]:
        filled, x0 = rule(denoiser, x, t, s, fresh, state)
        return torch.where(mask.bool(), add_noise(image, noise(), s), filled), x0

    return step


# What is to be filled, over y and x in 0..1.
MASKS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "left": lambda y, x: x < 0.5,
    "right": lambda y, x: x >= 0.5,
    "top": lambda y, x: y < 0.5,
    "bottom": lambda y, x: y >= 0.5,
    "middle": lambda y, x: (np.abs(y - 0.5) < 0.25) & (np.abs(x - 0.5) < 0.25),
    "border": lambda y, x: (np.abs(y - 0.5) >= 0.25) | (np.abs(x - 0.5) >= 0.25),
    "all": lambda y, x: y < 1,
}


def named_mask(name: str, shape: tuple[int, int, int]) -> Tensor:
    """The mask (1, 1, H, W) of a name in MASKS for images of `shape` (H, W, C): 1 where a pixel is known."""
    height, width, _ = shape
    y, x = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width)[None, :] + 0.5) / width
    return known_where(np.broadcast_to(~MASKS[name](y, x), (height, width)))


def known_where(known: np.ndarray) -> Tensor:
    """A boolean array (H, W) as a mask (1, 1, H, W)."""
    return torch.from_numpy(known.copy()).float()[None, None]
