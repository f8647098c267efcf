"""Scores of the model on held-out images: one-step denoising against two baselines, and DDIM round trips."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.core import processes
from ddpm.core.progress import Progress
from ddpm.core.seeds import seeded
from ddpm.data.images import psnr_of
from ddpm.data.prepared import Prepared, held_out
from ddpm.diffusion.schedule import Level, NoiseSchedule, add_noise
from ddpm.evaluation.lpips import Perceptual, by_batches
from ddpm.features.classifier import Classifier
from ddpm.sampling.denoiser import one_step
from ddpm.sampling.inversion import round_trip
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.time_grid import make_grid

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 0.75)  # of T
HEADLINE = 0.25
EXAMPLES = 8
ROUND_TRIP_STEPS = (10, 20, 50, 100)
# A covariance over more pixels than this is too large to decompose. It is then estimated from this many images, whose singular
# vectors span its range.
WIENER_LIMIT = 4096
WIENER_IMAGES = 4096


class Reconstruction(NamedTuple):
    """Scores of one-step denoising.

    scores: for metrics.json.
    curve: rows {fraction, level, method, psnr}.
    examples: images at the headline level by name, (8, C, H, W) in [-1, 1].
    """

    scores: dict
    curve: list[dict]
    examples: dict[str, Tensor]


class RoundTrips(NamedTuple):
    """Scores of encoding and decoding.

    scores: for metrics.json.
    examples: the images and their reconstructions by name, (8, C, H, W) in [-1, 1].
    """

    scores: dict
    examples: dict[str, Tensor]


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Returns the peak signal-to-noise ratio of each image in dB, (B,) float64, capped at 100; both (B, C, H, W) in [-1, 1].

    Raises ValueError for unequal shapes.
    """
    if image.shape != reference.shape:
        raise ValueError(f"shapes differ: {tuple(image.shape)} and {tuple(reference.shape)}")
    mse = (image.cpu().double() - reference.cpu().double()).square().flatten(1).mean(1)
    return psnr_of(mse)


def reconstruct(model: DiffusionModel, data: Prepared, classifier: Classifier, count: int, seed: int) -> Reconstruction:
    """Denoises `count` held-out images in one step from several levels, by the network, the Wiener filter and `zero_denoiser`.

    A class-conditional network receives the labels. The headline level is T / 4; PSNR is the mean over images.
    """
    x0, labels = held_out(data, count, seed, model.device)
    wiener = WienerFilter(data.train.images, seed)
    generator = seeded("cpu", seed, "reconstruction")
    curve, examples, scores = [], {}, {}
    for fraction in FRACTIONS:
        index = level_at(model.schedule, fraction)
        x_t, level = noisy_pairs(x0, model.schedule, index, generator)
        denoised = by_batches(lambda x, y: one_step(model.denoiser(y), x, level), x_t, labels)  # noqa: B023
        restored = {
            "network": torch.cat(denoised).to(x_t.device),
            "wiener": wiener(x_t, level),
            "zero": zero_denoiser(x_t, level),
        }
        values = {method: float(psnr(image, x0).mean()) for method, image in restored.items()}
        curve += [{"fraction": fraction, "level": index, "method": m, "psnr": v} for m, v in values.items()]
        if fraction == HEADLINE:
            scores = {"n": len(x0), "level": index, "psnr": values["network"]}
            scores |= {"psnr_wiener": values["wiener"], "psnr_zero": values["zero"]}
            scores["lpips"] = Perceptual(classifier, x0.device)(restored["network"], x0)
            examples = {name: image[:EXAMPLES] for name, image in {"clean": x0, "noisy": x_t, **restored}.items()}
    return Reconstruction(scores, curve, examples)


def level_at(schedule: NoiseSchedule, fraction: float) -> int:
    """Returns the level index nearest to that fraction of T, at least 1."""
    return max(1, round(fraction * schedule.steps))


def noisy_pairs(x0: Tensor, schedule: NoiseSchedule, index: int, generator: torch.Generator) -> tuple[Tensor, Level]:
    """Returns x_t of clean images (B, C, H, W) at one level, with noise from the generator, and the level as scalars."""
    level = schedule[index]
    eps = torch.randn(x0.shape, generator=generator, device=generator.device).to(x0.device)
    return add_noise(x0, eps, level), level


def zero_denoiser(x_t: Tensor, level: Level) -> Tensor:
    """Returns x0_hat = clip(x_t / alpha): the denoiser that predicts eps = 0."""
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
        """Returns x0_hat in [-1, 1] of x_t (B, C, H, W), with its shape and dtype."""
        alpha, sigma = level.alpha, level.sigma
        batch, channels, height, width = x_t.shape
        flat = x_t.cpu().double().permute(0, 2, 3, 1).reshape(batch, -1)
        gain = alpha * self.values / (alpha**2 * self.values + sigma**2)
        x0 = self.mean + ((flat - alpha * self.mean) @ self.basis * gain) @ self.basis.T
        return x0.reshape(batch, height, width, channels).permute(0, 3, 1, 2).to(x_t).clamp(-1, 1)


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64) / 127.5 - 1


def _covariance(images: np.ndarray, mean: np.ndarray) -> np.ndarray:
    # In chunks, so that memory does not grow with the number of images.
    total = np.zeros((len(mean), len(mean)))
    for start in range(0, len(images), 5_000):
        centred = _flat(images[start : start + 5_000]) - mean
        total += centred.T @ centred
    return total / max(1, len(images) - 1)


def round_trips(model: DiffusionModel, x0: Tensor, labels: Tensor) -> RoundTrips:
    """Encodes images (N, C, H, W) to noise by DDIM inversion and decodes them again, with several numbers of steps.

    Scores per number of steps, up to the model's T: PSNR in dB; mean squared error per pixel in [0, 1] (Song et al. 2021,
    table 2); and the standard deviation of the latents, which is 1 for Gaussian noise.
    """
    scores: dict = {"n": len(x0)}
    examples = {"clean": x0[:EXAMPLES]}
    step_counts = [steps for steps in ROUND_TRIP_STEPS if steps <= model.schedule.steps]
    with Progress("round trip", len(x0) * len(step_counts), "images") as progress:
        for steps in step_counts:
            grid = make_grid("trailing", model.schedule, steps)

            def encode_and_decode(x: Tensor, y: Tensor) -> Tensor:
                latent, image = round_trip(model.denoiser(y), model.schedule, grid, x)  # noqa: B023
                progress.advance(len(x) * processes.world_size())
                return torch.stack([latent, image.clamp(-1, 1)], dim=1)

            latents, decoded = torch.cat(by_batches(encode_and_decode, x0, labels)).unbind(1)
            scores[f"steps_{steps}"] = {
                "psnr": float(psnr(decoded, x0.cpu()).mean()),
                "mse": float(((decoded - x0.cpu()) / 2).double().square().mean()),
                "latent_sd": float(latents.std()),
            }
            examples[f"steps_{steps}"] = decoded[:EXAMPLES]
    return RoundTrips(scores, examples)


def round_trips_if_trained(model: DiffusionModel, x0: Tensor, labels: Tensor, reconstruction: dict) -> RoundTrips:
    """Returns `round_trips` of a model that denoises better than the Wiener filter, else only a status.

    A network that predicts eps = 0 reconstructs every image perfectly, so round trips of an untrained network mean nothing.
    reconstruction: the scores of `reconstruct`.
    """
    if reconstruction["psnr"] <= reconstruction["psnr_wiener"]:
        return RoundTrips({"status": "not measured: the network denoises no better than the Wiener filter"}, {})
    return round_trips(model, x0, labels)
