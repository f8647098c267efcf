"""Image to image: noise an image to a level and sample from there (SDEdit, Meng et al. 2022)."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.diffusion.schedule import NoiseSchedule, add_noise
from ddpm.sampling.denoiser import Denoiser
from ddpm.sampling.samplers import Frame, Noise, StepRule, sample


def from_level(grid: np.ndarray, position: float) -> np.ndarray:
    """Returns the grid from `position` on: it, then all positions below it; re-noising ends there. For 0 it is 0 alone.

    `position` takes the place of the next lower one if it is nearer to that than half of the step that follows: so short a
    first step gains nothing and misleads a multistep rule. Of S even steps, strength * S steps, rounded, remain.
    """
    below = np.unique(grid[grid <= position])
    near = len(below) > 1 and position - below[-1] < (below[-1] - below[-2]) / 2
    clamped = np.where(grid >= (below[-1] if near else position), position, grid)
    visits = np.append(position, clamped).astype(float)
    return visits[np.append(True, np.diff(visits) != 0)]


def from_strength(grid: np.ndarray, schedule: NoiseSchedule, strength: float) -> np.ndarray:
    """Returns the grid from level strength * T on, rounded, at least level 1 unless strength is 0 (`from_level`).

    Raises InputError unless 0 <= strength <= 1.
    """
    if not 0 <= strength <= 1:
        raise InputError(f"{strength} is not possible; give a number from 0, the image itself, to 1, a new image", key="strength")
    return from_level(grid, max(float(strength > 0), float(round(strength * schedule.steps))))


@torch.inference_mode()
def image_to_image(
    denoiser: Denoiser, rule: StepRule, schedule: NoiseSchedule, grid: np.ndarray, x0: Tensor, noise: Noise
) -> Iterator[Frame]:
    """Noises images x0 (B, C, H, W) in [-1, 1] to the start of a grid and samples from there (SDEdit, algorithm 1).

    grid: of `from_strength`. Strength 0 yields one frame, x0 itself, without an evaluation; 1 starts at T. If strength * S is
        whole, the grid `trailing` and T divisible by S, this is diffusers' image to image, which rounds any other strength down
        to a level of the grid and starts lower on `leading` grids, which begin below T.
    """
    if len(grid) == 1:
        yield Frame(0.0, x0, x0)
        return
    yield from sample(denoiser, rule, schedule, grid, add_noise(x0, noise(), schedule[float(grid[0])]), noise)
