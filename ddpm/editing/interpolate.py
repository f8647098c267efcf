"""From one image to another, and around one: latents are mixed, and decoded by DDIM with eta = 0.

A latent is the noise x_T that a deterministic sampler starts from. The latents of samples are known: `slerp` and `perturb_latent`
suffice. Real images are encoded first (`encode`); `interpolate` and `variations` add back what the encoding loses.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.diffusion.prediction import Prediction
from ddpm.diffusion.schedule import Level, NoiseSchedule, combine, per_image
from ddpm.sampling.denoiser import Denoiser
from ddpm.sampling.inversion import decode, round_trip
from ddpm.sampling.samplers import Frame

# Sine of the angle below which latents count as parallel. Float32 has 4 digits left there of the way round, if they are opposite,
# and none to tell an arc from a line, if they are not.
PARALLEL = 1e-3


def slerp(a: Tensor, b: Tensor, fraction: float | Tensor) -> Tensor:
    """From a (fraction 0) to b (1) along the arc between them, each image one vector of all its numbers (Shoemake 1985;
    for latents Song et al. 2021, sec. 5.3): sin((1 - f) angle) / sin(angle) a + sin(f angle) / sin(angle) b.

    a, b (B or 1, C, H, W); fraction one number, or (B,) for one per image; returns (B, C, H, W). Both ends are exact. Where a and
    b have one norm, all between have it too, as noise in many dimensions nearly does; on the straight line it would shrink. The
    straight line is taken where there is no one arc: a or b is 0, or they are parallel, or opposite, which leads through 0.
    """
    f = _per_image(fraction, a)
    norm_a, norm_b = _norm(a), _norm(b)
    u, v = a / norm_a, b / norm_b
    # Not by the arc cosine, which has half the digits near 0 and pi.
    angle = 2 * torch.atan2(_norm(u - v), _norm(u + v))
    straight = (angle.sin() < PARALLEL) | (norm_a == 0) | (norm_b == 0)
    sine = torch.where(straight, 1.0, angle.sin())
    first = torch.where(straight, 1 - f, ((1 - f) * angle).sin() / sine)
    second = torch.where(straight, f, (f * angle).sin() / sine)
    return _exact_at_ends(a, b, f, first * a + second * b)


def perturb_latent(latent: Tensor, noise: Tensor, amount: float | Tensor) -> Tensor:
    """cos(angle) latent + sin(angle) noise with angle = amount * 90 degrees: from the latent (amount 0) to fresh noise (1), both
    exact, and standard normal throughout if both are.

    latent (B or 1, C, H, W); noise (B, C, H, W); amount one number, or (B,) for one per image.
    Raises InputError unless 0 <= amount <= 1.
    """
    f = _per_image(amount, latent)
    wrong = f[~((f >= 0) & (f <= 1))]
    if len(wrong):
        raise InputError(
            f"{wrong[0]:g} is not possible; give a number from 0, the image itself, to 1, another image", key="amount"
        )
    angle = f * (math.pi / 2)
    return _exact_at_ends(latent, noise, f, angle.cos() * latent + angle.sin() * noise)


def _per_image(values: float | Tensor, x: Tensor) -> Tensor:
    return per_image(torch.as_tensor(values, dtype=None if isinstance(values, Tensor) else torch.float64), x)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)


def _exact_at_ends(a: Tensor, b: Tensor, f: Tensor, between: Tensor) -> Tensor:
    """Sines and cosines are off by a last digit."""
    return torch.where(f == 0, a, torch.where(f == 1, b, between))


class Encoded(NamedTuple):
    """Real images, their latents, and the residual image - decoded latent, each (B, C, H, W)."""

    image: Tensor
    latent: Tensor
    residual: Tensor


@torch.inference_mode()
def encode(denoiser: Denoiser, schedule: NoiseSchedule, grid: np.ndarray, x0: Tensor) -> Encoded:
    """Images x0 (B, C, H, W) in [-1, 1] encoded along a grid, and decoded once for the residual: two evaluations for each step.
    The denoiser must not clip (`editing.invert`)."""
    latent, decoded = round_trip(denoiser, schedule, grid, x0)
    return Encoded(x0, latent, x0 - decoded)


def interpolate(
    denoiser: Denoiser, schedule: NoiseSchedule, grid: np.ndarray, a: Encoded, b: Encoded, fractions: Tensor
) -> Iterator[Frame]:
    """Images between two real ones, at fractions (K,) of the way from a to b, one image each; yields Frames of K images.

    decode(slerp(a.latent, b.latent, f)) + (1 - f) a.residual + f b.residual. DDIM's round trip has an error O(1 / steps), by
    which decoding alone would miss both images; the residuals take it away at the ends, where the last frame holds a.image and
    b.image themselves, and fade from one into the other in between. Frames on the way show x + alpha * residual.

    The grid is that of `encode`. The denoiser is for the K images; near an end it should be told the class that `encode` was
    told there, or the image at the end stands out.
    """
    f = _per_image(fractions, a.image)
    ends = torch.where(f == 0, a.image, b.image)
    residual = torch.lerp(a.residual, b.residual, f)
    return _decode(denoiser, schedule, grid, slerp(a.latent, b.latent, fractions), residual, (f == 0) | (f == 1), ends)


def variations(
    denoiser: Denoiser, schedule: NoiseSchedule, grid: np.ndarray, encoded: Encoded, noise: Tensor, amount: float | Tensor
) -> Iterator[Frame]:
    """Variations of a real image: decode(vary(latent, noise, amount)) + cos(angle) residual; yields Frames of K images.

    encoded holds one image or K; noise (K, C, H, W) standard normal; amount one number, or (K,). amount 0 ends with the image
    itself, 1 with a sample that knows nothing of it. The grid is that of `encode`, the denoiser for the K images.
    Raises InputError unless 0 <= amount <= 1.
    """
    latent = perturb_latent(encoded.latent, noise, amount)
    f = _per_image(amount, latent)
    residual = perturb_latent(encoded.residual, torch.zeros_like(noise), amount)
    return _decode(denoiser, schedule, grid, latent, residual, f == 0, encoded.image)


@torch.inference_mode()
def _decode(
    denoiser: Denoiser, schedule: NoiseSchedule, grid: np.ndarray, latent: Tensor, residual: Tensor, known: Tensor, image: Tensor
) -> Iterator[Frame]:
    """Decoded latents with their residuals; those known (B or 1, 1, 1, 1) end as `image`, to the last digit."""
    for position, x, x0 in decode(denoiser, schedule, grid, latent):
        shown = combine(1.0, x, schedule[position].alpha, residual)
        yield Frame(position, torch.where(known, image, shown) if position == 0 else shown, x0 + residual)


def blended(first: Denoiser, second: Denoiser, fractions: Tensor) -> Denoiser:
    """Predictions of x0 on the way from one denoiser (fraction 0) to another (1); fractions (B,), one per image."""

    def denoise(x: Tensor, level: Level) -> Prediction:
        a, b = first(x, level), second(x, level)
        return a._replace(x0=torch.lerp(a.x0, b.x0, per_image(fractions, x)))

    return denoise
