"""Inpainting: a step rule that keeps known pixels, RePaint's grid with jumps (Lugmayr et al. 2022), and masks by name."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.diffusion.schedule import Level, add_noise
from ddpm.sampling.denoiser import Denoiser
from ddpm.sampling.samplers import Noise, StepRule


def with_repaint_jumps(grid: np.ndarray, jump_length: int, jump_n_sample: int) -> np.ndarray:
    """Returns a decreasing grid with re-noising, so that each stretch of `jump_length` steps is sampled `jump_n_sample` times.

    Inpainting on it is RePaint: filled and known pixels come to agree (Lugmayr et al. 2022, sec. 4.2, and `get_schedule_jump` of
    their code). Re-noising starts at the last position before 0 and at every `jump_length`-th one above it, as long as
    `jump_length` steps lead no higher than the start of the grid: the step to 0 is taken once, and so are up to
    jump_length - 1 steps at the noisy end. Re-noising is a single move with the law of its steps. jump_n_sample = 1 returns the
    grid itself.

    Raises InputError for values below 1, and for a jump as long as the grid; the keys are those of the command line.
    """
    steps = len(grid) - 1
    if jump_n_sample < 1:
        raise InputError(f"{jump_n_sample} must be 1 or more; 1 never re-noises", key="resamples")
    if jump_length < 1 or (jump_n_sample > 1 and jump_length >= steps):
        raise InputError(
            f"{jump_length} is out of range; give 1 or more, and fewer than the {steps} steps of the grid", key="jump"
        )
    left = dict.fromkeys(range(steps - 1, jump_length - 1, -jump_length), jump_n_sample - 1)
    visits, index = [], 0
    while index <= steps:
        visits.append(grid[index])
        jumps = left.get(index, 0) > 0
        if jumps:
            left[index] -= 1
        index += -jump_length if jumps else 1
    return np.array(visits)


def inpainting(rule: StepRule, image: Tensor, mask: Tensor, noise: Noise) -> StepRule:
    """Returns a step rule that keeps the known pixels and fills the others by `rule` (Lugmayr et al. 2022, eq. 8).

    image: (B, C, H, W) in [-1, 1].
    mask: (B or 1, 1 or C, H, W) of 0 and 1, 1 where a pixel is known.
    noise: is drawn for the known pixels alone, so that an empty mask leaves the sampler unchanged.

    On a grid of `with_repaint_jumps` this is RePaint. Raises InputError for a mask of another shape.
    """
    if mask.ndim != 4 or any(m not in (1, n) for m, n in zip(mask.shape, image.shape, strict=True)):
        raise InputError(
            f"shape {tuple(mask.shape)} does not fit images of {tuple(image.shape)}; both are (B, C, H, W)", key="mask"
        )

    def step(denoiser: Denoiser, x: Tensor, t: Level, s: Level, fresh: Noise, state: dict) -> tuple[Tensor, Tensor]:
        filled, x0 = rule(denoiser, x, t, s, fresh, state)
        return torch.where(mask.bool(), add_noise(image, noise(), s), filled), x0

    return step


# The pixels to fill, over y and x in 0..1.
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
    """Returns the mask (1, 1, H, W) of a name in MASKS for images of `shape` (H, W, C): 1 where a pixel is known."""
    height, width, _ = shape
    y, x = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width)[None, :] + 0.5) / width
    return to_mask(np.broadcast_to(~MASKS[name](y, x), (height, width)))


def to_mask(known: np.ndarray) -> Tensor:
    """Returns a boolean array (H, W) as a mask (1, 1, H, W), 1 where it is true."""
    return torch.from_numpy(known.copy()).float()[None, None]
