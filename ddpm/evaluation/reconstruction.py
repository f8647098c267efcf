"""PSNR on pairs: held-out images, noised to a level and denoised in one step, by the network and by two baselines."""

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion.schedule import Level, NoiseSchedule, add_noise

MAX_PSNR = 100.0
DATA_RANGE = 2.0  # images in [-1, 1]
FRACTIONS = (0.05, 0.1, 0.25, 0.5, 0.75)  # of T
HEADLINE = 0.25
# A covariance over more pixels than this is too large to decompose; it is estimated from so many images instead, whose
# singular vectors span all that it can explain.
WIENER_LIMIT = 4096
WIENER_IMAGES = 4096


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, (B,) float64, capped at 100; both (B, C, H, W) in [-1, 1]."""
    if image.shape != reference.shape:
        raise ValueError(f"shapes differ: {tuple(image.shape)} and {tuple(reference.shape)}")
    mse = (image.cpu().double() - reference.cpu().double()).square().flatten(1).mean(1)
    return (10 * torch.log10(DATA_RANGE**2 / mse)).clamp(max=MAX_PSNR)


def level_at(schedule: NoiseSchedule, fraction: float) -> int:
    """The level index nearest to that fraction of T, at least 1."""
    return max(1, round(fraction * schedule.steps))


def zero_denoiser(x_t: Tensor, level: Level) -> Tensor:
    """x0_hat = clip(x_t / alpha): the denoiser that sees no noise."""
    return (x_t / level.alpha).clamp(-1, 1)


class WienerFilter:
    """The best linear denoiser of Gaussian data with the mean and covariance of the training images.

    x0_hat = mean + alpha C (alpha^2 C + sigma^2 I)^-1 (x_t - alpha mean), computed in the eigenbasis of C, clipped to [-1, 1].
    """

    def __init__(self, images: np.ndarray, seed: int):
        """images: uint8 (N, H, W, C), the training split."""
        pixels = int(np.prod(images.shape[1:]))
        if pixels > WIENER_LIMIT and len(images) > WIENER_IMAGES:
            images = images[np.sort(np.random.default_rng(seed).choice(len(images), WIENER_IMAGES, replace=False))]
        self.mean = torch.from_numpy(_flat(images).mean(0))
        if pixels <= WIENER_LIMIT:
            values, basis = torch.linalg.eigh(torch.from_numpy(_covariance(images, self.mean.numpy())))
        else:
            _, singular, rows = torch.linalg.svd(torch.from_numpy(_flat(images)) - self.mean, full_matrices=False)
            values, basis = singular.square() / (len(images) - 1), rows.T
        self.values, self.basis = values.clamp(min=0), basis

    def __call__(self, x_t: Tensor, level: Level) -> Tensor:
        """x_t (B, C, H, W) -> x0_hat in [-1, 1], same shape and dtype."""
        alpha, sigma = level.alpha, level.sigma
        batch, channels, height, width = x_t.shape
        flat = x_t.cpu().double().permute(0, 2, 3, 1).reshape(batch, -1)
        gain = alpha * self.values / (alpha**2 * self.values + sigma**2)
        x0 = self.mean + ((flat - alpha * self.mean) @ self.basis * gain) @ self.basis.T
        return x0.reshape(batch, height, width, channels).permute(0, 3, 1, 2).to(x_t).clamp(-1, 1)


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64) / 127.5 - 1


def _covariance(images: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """In chunks, so that memory does not grow with the number of images."""
    total = np.zeros((len(mean), len(mean)))
    for start in range(0, len(images), 5_000):
        centred = _flat(images[start : start + 5_000]) - mean
        total += centred.T @ centred
    return total / max(1, len(images) - 1)


def noisy_pairs(x0: Tensor, schedule: NoiseSchedule, index: int, generator: torch.Generator) -> tuple[Tensor, Level]:
    """x_t of clean images (B, C, H, W) at one level, with noise from the generator, and the level as scalars."""
    level = schedule[index]
    eps = torch.randn(x0.shape, generator=generator, device=generator.device).to(x0.device)
    return add_noise(x0, eps, level), level
