"""Given images and samplers: DDIM inversion, the encode-decode round trip, inpainting, and image to image."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion.parameterization import Prediction
from ddpm.diffusion.schedule import Level, NoiseSchedule, add_noise, combine
from ddpm.files import InputError
from ddpm.sampling.denoiser import Denoiser
from ddpm.sampling.grid import from_strength
from ddpm.sampling.samplers import Frame, Noise, StepRule, euler_step, sample


def invert(denoiser: Denoiser, schedule: NoiseSchedule, grid: np.ndarray, x0: Tensor, eta: float = 0.0) -> Iterator[Frame]:
    """Encode images x0 (B, C, H, W) in [-1, 1] to noise along a grid, climbed from its end 0 to its start; yields Frames.

    The deterministic DDIM step taken backwards, with the prediction at where it starts (Song et al. 2021, sec. 4.3). Sampling
    from the last frame's x with eta = 0 decodes it; the error of the two falls as 1 / steps. The denoiser must not clip.
    Raises InputError for eta > 0, which draws noise that no step back can know.
    """
    if eta > 0:
        raise InputError(f"eta: {eta} cannot be inverted, since sampling with it draws fresh noise; only eta = 0 can")
    return _climb(denoiser, schedule, grid, x0)


@torch.inference_mode()
def _climb(denoiser: Denoiser, schedule: NoiseSchedule, grid: np.ndarray, x0: Tensor) -> Iterator[Frame]:
    upwards = grid[::-1].tolist()
    x = x0
    for (t, s), position in zip(pairwise(schedule[p] for p in upwards), upwards[1:], strict=True):
        # A clean image has no noise to see, and x0 is the image itself: the network is asked as at level 1, whose t it shares.
        found = denoiser(x, t if t.sigma > 0 else schedule[1])
        estimate = found.x0 if t.sigma > 0 else x
        x = combine(s.alpha, estimate, s.sigma, found.eps)
        yield Frame(position, x, estimate)


def decode(denoiser: Denoiser, schedule: NoiseSchedule, grid: np.ndarray, latent: Tensor) -> Iterator[Frame]:
    """What `invert` encoded along the grid, sampled back by DDIM with eta = 0; latent (B, C, H, W); yields Frames."""
    return sample(denoiser, euler_step, schedule, grid, latent, _no_noise)


def round_trip(denoiser: Denoiser, schedule: NoiseSchedule, grid: np.ndarray, x0: Tensor) -> tuple[Tensor, Tensor]:
    """x0 (B, C, H, W) encoded to noise and decoded again along the same grid: (latent, image), both as x0."""
    *_, encoded = invert(denoiser, schedule, grid, x0)
    *_, decoded = decode(denoiser, schedule, grid, encoded.x)
    return encoded.x, decoded.x


def _no_noise() -> Tensor:
    raise AssertionError("a deterministic step drew noise")


def inpainting(rule: StepRule, image: Tensor, mask: Tensor, noise: Noise) -> StepRule:
    """A step rule that keeps the known pixels, where mask is 1, and lets `rule` fill the others (Lugmayr et al. 2022, eq. 8).

    On a grid with climbs (`grid.jumped`) it is RePaint, which makes the two agree better than a single descent does.
    image (B, C, H, W) in [-1, 1]; mask (B or 1, 1 or C, H, W) of 0 and 1. `noise` is drawn for the known pixels alone, so that
    an empty mask leaves the sampler as it is. Raises InputError for a mask of another shape.
    """
    if mask.ndim != 4 or any(m not in (1, n) for m, n in zip(mask.shape, image.shape, strict=True)):
        raise InputError(f"mask: shape {tuple(mask.shape)} does not fit images of {tuple(image.shape)}; both are (B, C, H, W)")

    def step(x: Tensor, prediction: Prediction, t: Level, s: Level, fresh: Noise, memory: dict) -> Tensor:
        filled = rule(x, prediction, t, s, fresh, memory)
        return torch.where(mask.bool(), add_noise(image, noise(), s), filled)

    return step


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
