"""Scores of the model on held-out images: what comes back of each, from noise added to it or from its own latent."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm import distributed
from ddpm.data.batches import to_model_range, to_tensor
from ddpm.data.prepared import Prepared
from ddpm.diffusion.schedule import Level
from ddpm.evaluation.distances import disjoint_sets
from ddpm.evaluation.perceptual import Perceptual, by_batches
from ddpm.evaluation.reconstruction import FRACTIONS, HEADLINE, WienerFilter, level_at, noisy_pairs, psnr, zero_denoiser
from ddpm.judge.classifier import Classifier
from ddpm.runtime import Progress, seeded
from ddpm.sampling.denoiser import one_step
from ddpm.sampling.editing import round_trip
from ddpm.sampling.grid import make_grid
from ddpm.sampling.model import DiffusionModel

EXAMPLES = 8
ROUND_TRIP_STEPS = (10, 20, 50, 100)


def held_out(data: Prepared, count: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Up to `count` random test images (N, C, H, W) in [-1, 1], and their labels (N,)."""
    chosen = np.sort(disjoint_sets(len(data.test.images), min(count, len(data.test.images)), seed)[0])
    return to_model_range(to_tensor(data.test.images[chosen], device)), torch.tensor(data.test.labels[chosen], device=device)


class Reconstruction(NamedTuple):
    """scores: for metrics.json; curve: rows {fraction, level, method, psnr}; examples: headline images, in model range."""

    scores: dict
    curve: list[dict]
    examples: dict[str, Tensor]


def reconstruct(model: DiffusionModel, data: Prepared, judge: Classifier, count: int, seed: int) -> Reconstruction:
    """One-step denoising of held-out images at several levels, by the network, the Wiener filter and "no noise at all".

    A class-conditional network is told the class. The headline level is T / 4; PSNR is the mean over images.
    """
    x0, labels = held_out(data, count, seed, model.device)
    wiener = WienerFilter(data.train.images, seed)
    generator = seeded("cpu", seed, "reconstruction")
    curve, examples, scores = [], {}, {}
    for fraction in FRACTIONS:
        index = level_at(model.schedule, fraction)
        x_t, level = noisy_pairs(x0, model.schedule, index, generator)

        def denoise(x: Tensor, y: Tensor, level: Level = level) -> Tensor:
            return one_step(model.denoiser(y), x, level)

        restored = {
            "network": torch.cat(by_batches(denoise, x_t, labels)).to(x_t.device),
            "wiener": wiener(x_t, level),
            "zero": zero_denoiser(x_t, level),
        }
        values = {method: float(psnr(image, x0).mean()) for method, image in restored.items()}
        curve += [{"fraction": fraction, "level": index, "method": m, "psnr": v} for m, v in values.items()]
        if fraction == HEADLINE:
            scores = {
                "n": len(x0),
                "level": index,
                "psnr": values["network"],
                "psnr_wiener": values["wiener"],
                "psnr_zero": values["zero"],
                "lpips": Perceptual(judge, x0.device)(restored["network"], x0),
            }
            examples = {"clean": x0, "noisy": x_t, **restored}
            examples = {name: image[:EXAMPLES] for name, image in examples.items()}
    return Reconstruction(scores, curve, examples)


class RoundTrips(NamedTuple):
    """scores: for metrics.json; examples: model range, the images and what came back, by name."""

    scores: dict
    examples: dict[str, Tensor]


def round_trips(model: DiffusionModel, x0: Tensor, labels: Tensor) -> RoundTrips:
    """Images (N, C, H, W) encoded to noise by DDIM inversion and decoded again, over several numbers of steps.

    Scores per steps S, as far as the model has that many levels: PSNR in dB; mean squared error per pixel in [0, 1]
    (Song et al. 2021, table 2); and the standard deviation of the latents, 1 where they are noise.
    """
    scores: dict = {"n": len(x0)}
    examples = {"clean": x0[:EXAMPLES]}
    steps_of = [steps for steps in ROUND_TRIP_STEPS if steps <= model.schedule.steps]
    with Progress("round trip", len(x0) * len(steps_of), "images") as progress:
        for steps in steps_of:
            grid = make_grid("trailing", model.schedule, steps)

            def there_and_back(x: Tensor, y: Tensor) -> Tensor:
                latent, image = round_trip(model.denoiser(y), model.schedule, grid, x)  # noqa: B023
                progress.advance(len(x) * distributed.size())
                return torch.stack([latent, image.clamp(-1, 1)], dim=1)

            latents, decoded = torch.cat(by_batches(there_and_back, x0, labels)).unbind(1)
            scores[f"steps_{steps}"] = {
                "psnr": float(psnr(decoded, x0.cpu()).mean()),
                "mse": float(((decoded - x0.cpu()) / 2).double().square().mean()),
                "latent_sd": float(latents.std()),
            }
            examples[f"steps_{steps}"] = decoded[:EXAMPLES]
    return RoundTrips(scores, examples)


def round_trips_if_trained(model: DiffusionModel, x0: Tensor, labels: Tensor, reconstruction: dict) -> RoundTrips:
    """`round_trips` of a model that denoises better than the Wiener filter: one that sees no noise returns all images as they
    were, and means nothing by it."""
    if reconstruction["psnr"] <= reconstruction["psnr_wiener"]:
        return RoundTrips({"status": "not measured: the network denoises no better than the Wiener filter"}, {})
    return round_trips(model, x0, labels)
