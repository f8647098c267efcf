"""Likelihood of held-out images: the variational bound in bits per dimension (Ho et al. 2020, sec. 4.3)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.core import processes
from ddpm.core.progress import Progress
from ddpm.core.seeds import seeded
from ddpm.diffusion.schedule import add_noise
from ddpm.diffusion.variance import VARIANCES
from ddpm.diffusion.vlb import prior_bpd, vlb_terms_bpd
from ddpm.sampling.denoiser import thresholded
from ddpm.sampling.model import DiffusionModel

BATCH = 250


class Likelihood(NamedTuple):
    """The variational bound.

    scores: for metrics.json.
    level: mean level of each stratum, (M + 1,).
    curve: per variance, the mean bits of one step at these levels, (M + 1,).
    """

    scores: dict
    level: np.ndarray
    curve: dict[str, np.ndarray]


def likelihood(model: DiffusionModel, images: Tensor, labels: Tensor, levels: int | None, seed: int) -> Likelihood:
    """Bounds the bits per dimension of images (N, C, H, W) in [-1, 1], of 256 values per pixel, conditioned on labels (N,).

    prior + steps + decoder, for each variance that the model allows, all from the same network evaluations. The decoder is
    evaluated for every image. Of the steps 2..T, `levels` are evaluated per image, one in each of that many equal strata, which
    estimates their sum without bias; None evaluates all. x0_hat is clipped to [-1, 1].
    """
    total = model.schedule.steps
    strata = min(levels or total - 1, total - 1)
    names = [name for name in VARIANCES if name != "learned" or model.learns_variance]
    index = torch.ones(len(images), strata + 1, dtype=torch.int64)
    offsets = torch.rand(len(images), strata, generator=seeded("cpu", seed, "likelihood levels"), dtype=torch.float64)
    index[:, 1:] = 2 + ((torch.arange(strata) + offsets) * ((total - 1) / strata)).long().clamp(max=total - 2)
    with Progress("likelihood", len(images) * (strata + 1), "images") as progress, torch.inference_mode():

        def compute_batch(first: int) -> dict[str, Tensor]:
            part = slice(first, first + BATCH)
            x0, denoiser = images[part], thresholded(model.denoiser(labels[part]))
            generator = seeded(model.device, seed, "likelihood", first)
            bits = {name: torch.zeros(len(x0), strata + 1, dtype=torch.float64) for name in names}
            for k in range(strata + 1):
                eps = torch.randn(x0.shape, generator=generator, device=x0.device)
                level = model.schedule[index[part, k]]
                prediction = denoiser(add_noise(x0, eps, level), level)
                for name in names:
                    term = vlb_terms_bpd(model.schedule, index[part, k], x0, prediction.x0, name, prediction.variance_interp)
                    bits[name][:, k] = term.cpu().double()
                progress.advance(len(x0) * processes.world_size())
            return bits

        parts = processes.map_over_ranks(range(0, len(images), BATCH), compute_batch)
    terms = {name: torch.cat([part[name] for part in parts]) for name in names}
    prior = prior_bpd(images.cpu().double(), model.schedule[total])
    scores: dict = {"n": len(images), "evaluations": strata + 1, "prior": float(prior.mean())}
    for name in names:
        decoder, steps = terms[name][:, 0], terms[name][:, 1:].sum(1) * ((total - 1) / strata)
        total_bits = prior + steps + decoder
        scores[name] = {
            "bits_per_dim": float(total_bits.mean()),
            "bits_per_dim_se": float(total_bits.std() / len(images) ** 0.5),
            "steps": float(steps.mean()),
            "decoder": float(decoder.mean()),
        }
    return Likelihood(scores, index.double().mean(0).numpy(), {name: terms[name].mean(0).numpy() for name in names})
