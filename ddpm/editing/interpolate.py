"""Interpolation between images and variations of one: latents are mixed and decoded by DDIM with eta = 0.

A latent is the noise x_T that a deterministic sampler starts from. Those of samples are known: `slerp` and `perturb_latent`
suffice. Real images are encoded first (`Encoded`); `interpolate` and `variations` add back what the encoding loses.
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
from ddpm.sampling.inversion import decode
from ddpm.sampling.samplers import Frame

# Sine of the angle below which slerp is ill-conditioned in float32 (opposite vectors) or equal to lerp (parallel ones), so that
# lerp is used.
PARALLEL = 1e-3


def slerp(a: Tensor, b: Tensor, fraction: float | Tensor) -> Tensor:
    """Returns the spherical interpolation from a (fraction 0) to b (1), each image one vector of all its numbers.

    sin((1 - f) angle) / sin(angle) a + sin(f angle) / sin(angle) b (Shoemake 1985; for latents Song et al. 2021, sec. 5.3).
    It keeps the norm of a and b, if they have the same, as noise in many dimensions nearly does; linear interpolation shrinks it.
    Linear interpolation is used if a or b is 0, or if they are parallel or opposite. Both ends are exact.

    a, b: (B or 1, C, H, W).
    fraction: a number, or (B,) for one per image.
    """
    f = _per_image(fraction, a)
    norm_a, norm_b = _norm(a), _norm(b)
    u, v = a / norm_a, b / norm_b
    # The arc cosine would have half the digits near 0 and pi.
    angle = 2 * torch.atan2(_norm(u - v), _norm(u + v))
    straight = (angle.sin() < PARALLEL) | (norm_a == 0) | (norm_b == 0)
    sine = torch.where(straight, 1.0, angle.sin())
    first = torch.where(straight, 1 - f, ((1 - f) * angle).sin() / sine)
    second = torch.where(straight, f, (f * angle).sin() / sine)
    return _exact_at_ends(a, b, f, first * a + second * b)


def perturb_latent(latent: Tensor, noise: Tensor, amount: float | Tensor) -> Tensor:
    """Returns cos(angle) latent + sin(angle) noise with angle = amount * 90 degrees, standard normal if both are.

    latent: (B or 1, C, H, W).
    noise: (B, C, H, W).
    amount: a number, or (B,) for one per image; 0 is exactly the latent, 1 exactly the noise.

    Raises InputError unless 0 <= amount <= 1.
    """
    f = _per_image(amount, latent)
    invalid = f[~((f >= 0) & (f <= 1))]
    if len(invalid):
        raise InputError(
            f"{invalid[0]:g} is not possible; give a number from 0, the image itself, to 1, another image", key="amount"
        )
    angle = f * (math.pi / 2)
    return _exact_at_ends(latent, noise, f, angle.cos() * latent + angle.sin() * noise)


def _per_image(values: float | Tensor, x: Tensor) -> Tensor:
    return per_image(torch.as_tensor(values, dtype=None if isinstance(values, Tensor) else torch.float64), x)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)


def _exact_at_ends(a: Tensor, b: Tensor, f: Tensor, between: Tensor) -> Tensor:
    # Sines and cosines are off by the last digit.
    return torch.where(f == 0, a, torch.where(f == 1, b, between))


class Encoded(NamedTuple):
    """Real images, encoded along a grid by a denoiser that does not clip.

    image: (B, C, H, W) in [-1, 1].
    latent: of DDIM inversion, (B, C, H, W).
    residual: image - decoded latent, (B, C, H, W).
    """

    image: Tensor
    latent: Tensor
    residual: Tensor


def interpolate(
    denoiser: Denoiser, schedule: NoiseSchedule, grid: np.ndarray, a: Encoded, b: Encoded, fractions: Tensor
) -> Iterator[Frame]:
    """Yields Frames of images between two real ones, one for each of the fractions (K,) from a to b.

    decode(slerp(a.latent, b.latent, f)) + (1 - f) a.residual + f b.residual. DDIM's round trip has an error O(1 / steps), which
    the residuals remove: the last frame holds a.image and b.image themselves at the ends. Earlier frames show
    x + alpha * residual.

    The grid is that of the encoding. The denoiser is for the K images; near an end it should receive the labels of the encoding,
    or the image at the end differs visibly from its neighbours.
    """
    f = _per_image(fractions, a.image)
    ends = torch.where(f == 0, a.image, b.image)
    residual = torch.lerp(a.residual, b.residual, f)
    return _decode(denoiser, schedule, grid, slerp(a.latent, b.latent, fractions), residual, (f == 0) | (f == 1), ends)


def variations(
    denoiser: Denoiser, schedule: NoiseSchedule, grid: np.ndarray, encoded: Encoded, noise: Tensor, amount: float | Tensor
) -> Iterator[Frame]:
    """Yields Frames of K variations of a real image: decode(perturb_latent(latent, noise, amount)) + cos(angle) residual.

    encoded: one image or K.
    noise: (K, C, H, W), standard normal.
    amount: a number, or (K,); 0 ends with the image itself, 1 with a new image.

    The grid is that of the encoding, the denoiser for the K images. Raises InputError unless 0 <= amount <= 1.
    """
    latent = perturb_latent(encoded.latent, noise, amount)
    f = _per_image(amount, latent)
    residual = perturb_latent(encoded.residual, torch.zeros_like(noise), amount)
    return _decode(denoiser, schedule, grid, latent, residual, f == 0, encoded.image)


@torch.inference_mode()
def _decode(
    denoiser: Denoiser, schedule: NoiseSchedule, grid: np.ndarray, latent: Tensor, residual: Tensor, exact: Tensor, image: Tensor
) -> Iterator[Frame]:
    """Decodes latents and adds their residuals; the images for which exact (B or 1, 1, 1, 1) holds end as `image` itself."""
    for position, x, x0 in decode(denoiser, schedule, grid, latent):
        shown = combine(1.0, x, schedule[position].alpha, residual)
        yield Frame(position, torch.where(exact, image, shown) if position == 0 else shown, x0 + residual)


def blended(first: Denoiser, second: Denoiser, fractions: Tensor) -> Denoiser:
    """Returns a denoiser whose x0 goes linearly from one denoiser's (fraction 0) to another's (1); fractions (B,)."""

    def denoise(x: Tensor, level: Level) -> Prediction:
        a, b = first(x, level), second(x, level)
        return a._replace(x0=torch.lerp(a.x0, b.x0, per_image(fractions, x)))

    return denoise
