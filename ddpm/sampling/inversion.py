"""Given images and samplers: DDIM inversion, the encode-decode round trip, inpainting, and image to image."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.diffusion.schedule import NoiseSchedule, combine
from ddpm.sampling.denoiser import Denoiser
from ddpm.sampling.samplers import Frame, euler_step, sample


def invert(denoiser: Denoiser, schedule: NoiseSchedule, grid: np.ndarray, x0: Tensor, eta: float = 0.0) -> Iterator[Frame]:
    """Encode images x0 (B, C, H, W) in [-1, 1] to noise along a grid, climbed from its end 0 to its start; yields Frames.

    The deterministic DDIM step taken backwards, with the prediction at where it starts (Song et al. 2021, sec. 4.3). Sampling
    from the last frame's x with eta = 0 decodes it; the error of the two falls as 1 / steps. The denoiser must not clip.
    Raises InputError for eta > 0, which draws noise that no step back can know.
    """
    if eta > 0:
        raise InputError(f"{eta} cannot be inverted, since sampling with it draws fresh noise; only eta = 0 can", key="eta")
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
