"""Which noise levels a sampler visits: positions on the levels 0..T, from the noisiest down to 0.

A position between two levels is a level too (`NoiseSchedule`). A grid may climb, which adds noise again, and may stay, which a
sampler that evaluates twice per step uses for its correction.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.diffusion.schedule import NoiseSchedule, add_noise
from ddpm.sampling.denoiser import Denoiser
from ddpm.sampling.samplers import Frame, Noise, StepRule, sample


def from_level(grid: np.ndarray, position: float) -> np.ndarray:
    """The grid from that position on: the position, then all that lies below it; climbs end there. Of 0 it is 0 alone.

    A position between two levels takes the place of the lower one where that is nearer than half of the step that follows: a
    first step as short as that gains nothing, and misleads a multistep rule. So strength * S steps, rounded, are left of S even
    ones.
    """
    rest = np.unique(grid[grid <= position])
    near = len(rest) > 1 and position - rest[-1] < (rest[-1] - rest[-2]) / 2
    visits = np.append(position, np.where(grid >= (rest[-1] if near else position), position, grid)).astype(float)
    waits = (visits[1:] == position) & (visits[:-1] == position)
    return visits[np.append(True, ~waits)]


def from_strength(grid: np.ndarray, schedule: NoiseSchedule, strength: float) -> np.ndarray:
    """The grid from level strength * T on, rounded to a whole level, at least level 1 unless strength is 0 (`from_level`).

    Raises InputError unless 0 <= strength <= 1.
    """
    if not 0 <= strength <= 1:
        raise InputError(
            f"{strength} is not possible; give a number from 0, the image itself, to 1, noise at first", key="strength"
        )
    return from_level(grid, max(float(strength > 0), float(round(strength * schedule.steps))))


def image_to_image(
    denoiser: Denoiser, rule: StepRule, schedule: NoiseSchedule, grid: np.ndarray, x0: Tensor, strength: float, noise: Noise
) -> Iterator[Frame]:
    """Images x0 (B, C, H, W) in [-1, 1] noised to level strength * T and sampled down from there; yields Frames (SDEdit, Meng
    et al. 2022, algorithm 1).

    strength 0 is a single frame, x0 itself, without an evaluation; 1 starts at T. Of S steps about strength * S are taken, along
    `grid.from_strength`, whose `evaluations` are what it costs: where strength * S is whole and the grid `trailing` with S
    dividing T, this is diffusers' image to image. That rounds any other strength down to a level of the grid, and on `leading`
    grids, which begin below T, starts lower. Raises InputError unless 0 <= strength <= 1.
    """
    return _from_image(denoiser, rule, schedule, from_strength(grid, schedule, strength), x0, noise)


@torch.inference_mode()
def _from_image(
    denoiser: Denoiser, rule: StepRule, schedule: NoiseSchedule, grid: np.ndarray, x0: Tensor, noise: Noise
) -> Iterator[Frame]:
    if len(grid) == 1:
        yield Frame(0.0, x0, x0)
        return
    yield from sample(denoiser, rule, schedule, grid, add_noise(x0, noise(), schedule[float(grid[0])]), noise)
