"""DDIM inversion: images to noise and back."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion.schedule import NoiseSchedule, combine
from ddpm.sampling.denoiser import Denoiser
from ddpm.sampling.samplers import Frame, euler_step, no_noise, sample


@torch.inference_mode()
def invert(denoiser: Denoiser, schedule: NoiseSchedule, grid: np.ndarray, x: Tensor) -> Iterator[Frame]:
    """Encodes images x (B, C, H, W) in [-1, 1] to noise along a grid, from its end 0 up to its start; yields Frames.

    This is the deterministic DDIM step backwards, with the prediction at its start (Song et al. 2021, sec. 4.3). Sampling from
    the last frame's x with eta = 0 decodes it, with an error that falls as 1 / steps. The denoiser must not clip.
    """
    upwards = grid[::-1].tolist()
    for (t, s), position in zip(pairwise(schedule[p] for p in upwards), upwards[1:], strict=True):
        # At level 0 the image is x0 itself, and the network is evaluated as at level 1, whose t it shares.
        prediction = denoiser(x, t if t.sigma > 0 else schedule[1])
        x0 = prediction.x0 if t.sigma > 0 else x
        x = combine(s.alpha, x0, s.sigma, prediction.eps)
        yield Frame(position, x, x0)


def decode(denoiser: Denoiser, schedule: NoiseSchedule, grid: np.ndarray, latent: Tensor) -> Iterator[Frame]:
    """Decodes a latent (B, C, H, W) of `invert` along the same grid, by DDIM with eta = 0; yields Frames."""
    return sample(denoiser, euler_step, schedule, grid, latent, no_noise)


def round_trip(denoiser: Denoiser, schedule: NoiseSchedule, grid: np.ndarray, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Encodes x0 (B, C, H, W) to noise and decodes it along the same grid; returns (latent, image)."""
    *_, encoded = invert(denoiser, schedule, grid, x0)
    *_, decoded = decode(denoiser, schedule, grid, encoded.x)
    return encoded.x, decoded.x
