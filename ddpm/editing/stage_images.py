"""What the stage `edit` makes for the report: images filled in, edited, varied and interpolated, and the film of a training."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.core.params import Section
from ddpm.core.weights import put_weights
from ddpm.data.images import to_images, to_model_range, to_tensor
from ddpm.data.prepared import Split
from ddpm.editing.inpaint import named_mask, with_repaint_jumps
from ddpm.editing.score import MASK, inpaint_methods
from ddpm.editing.tasks import Source, edit_images, inpaint_images, interpolate_images, vary_images
from ddpm.networks.checkpoints import CheckpointName
from ddpm.networks.power_ema import TRACKED_SIGMA_REL, list_snapshots, read_snapshot
from ddpm.sampling.generate import generate
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.noise import latent_of
from ddpm.sampling.plan import make_plan
from ddpm.sampling.progress import final_images


def models_of_training(model: DiffusionModel, folder: Path, count: int) -> Iterator[tuple[int, DiffusionModel]]:
    """Up to `count` of the snapshots of a training, (step, the model with their narrowest averages), from first to last.

    The model's own network is filled with them, one after the other. Raises InputError if there are none.
    """
    steps = list_snapshots(folder)
    if not steps:
        raise InputError(
            "holds no snapshots to make a film of; set train.snapshots above 0 and run `dvc repro train`", key=folder
        )
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(count, len(steps))).round().astype(int))
    for step in (steps[k] for k in chosen):
        put_weights(read_snapshot(folder, step)[TRACKED_SIGMA_REL[0]], model.network, folder, "train")
        yield step, model._replace(network=model.network.to(model.device, memory_format=torch.channels_last).eval())


Count = Annotated[int, Field(ge=1)]
STRENGTHS, AMOUNTS = (0.25, 0.5, 0.75), (0.2, 0.4)
PAIRS = 3
BETWEEN, EVERY = 25, 3  # images of an interpolation; every third stands in the strip
FILM_IMAGES, FILM_STEPS = 20, 20


class Edit(Section):
    """The `edit` section."""

    images: Annotated[int, Field(ge=1, le=64)]
    scored_images: Annotated[int, Field(ge=1)]
    steps: Count
    repaint_jump_length: Count
    repaint_resamples: Count
    film_frames: Annotated[int, Field(ge=0, le=1_000)]
    checkpoint: CheckpointName

    def fitted(self, model: DiffusionModel) -> "Edit":
        """With no more steps than the model has, and jumps that they have room for."""
        steps = min(self.steps, model.schedule.steps)
        jump = min(self.repaint_jump_length, max(1, steps - 1))
        return self.model_copy(
            update={
                "steps": steps,
                "repaint_jump_length": jump,
                "repaint_resamples": self.repaint_resamples if jump < steps else 1,
            }
        )


def of_classes(test: Split, count: int) -> np.ndarray:
    """Numbers of `count` test images, the classes in turn as far as they go."""
    by_class = [np.flatnonzero(test.labels == label) for label in np.unique(test.labels)]
    turns = [of[k] for k in range(max(map(len, by_class))) for of in by_class if k < len(of)]
    return np.asarray(turns[:count])


def make_edits(model: DiffusionModel, test: Split, settings: Edit, seed: int) -> dict[str, np.ndarray]:
    """uint8 arrays (K, H, W, C) by name: inpaint_*, edit_*, interpolate_*, as ddpm/reporting/edits.py shows them."""
    chosen = of_classes(test, settings.images)
    x0 = to_model_range(to_tensor(test.images[chosen], model.device))
    labels = torch.tensor(test.labels[chosen], device=model.device) if model.network.takes_labels else None
    arrays = {**_fills(model, x0, labels, settings, seed), "edit_image": x0}
    plan = make_plan(model, steps=settings.steps)
    for strength in STRENGTHS:
        arrays[f"edit_strength_{strength:g}"] = final_images(edit_images(model, plan, x0, strength, labels, seed))
    for amount in AMOUNTS:
        each = [final_images(vary_images(model, plan, _source(x0, labels, k), amount, 1, seed + k)) for k in range(len(x0))]
        arrays[f"edit_varied_{amount:g}"] = torch.cat(each)
    for name, images in _between(model, test, settings.steps, seed):
        arrays[f"interpolate_{name}"] = images[::EVERY]
        arrays[f"interpolate_film_{name}"] = images
    return {name: to_images(images) for name, images in arrays.items()}


def _fills(model: DiffusionModel, x0: Tensor, labels: Tensor | None, settings: Edit, seed: int) -> dict[str, Tensor]:
    mask = named_mask(MASK, model.shape).to(model.device)
    # What is missing is shown gray.
    arrays = {"inpaint_image": x0, "inpaint_known": x0 * mask}
    for name, (times, shown) in inpaint_methods(model, settings.repaint_resamples).items():
        plan = make_plan(
            model, change=partial(with_repaint_jumps, jump=settings.repaint_jump_length, resamples=times), steps=settings.steps
        )
        for k in (1, 2):
            filled = final_images(inpaint_images(model, plan, x0, mask, labels, seed + k, shown))
            arrays[f"inpaint_filled_{name}_{k}"] = filled
    return arrays


def _between(model: DiffusionModel, test: Split, steps: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Interpolations between samples, and between test images, of several pairs of classes."""
    plan = make_plan(model, steps=steps)
    numbers = np.resize(of_classes(test, 2 * PAIRS), 2 * PAIRS)
    images = to_model_range(to_tensor(test.images[numbers], model.device))
    labels = torch.tensor(test.labels[numbers], device=model.device) if model.network.takes_labels else None
    for k in range(PAIRS):
        real = [_source(images, labels, 2 * k + end) for end in (0, 1)]
        # Samples of the same classes.
        drawn = [Source(None, latent_of(model, seed + 2 * k + end), source.labels) for end, source in enumerate(real)]
        yield f"sample_{k + 1}", final_images(interpolate_images(model, plan, *drawn, BETWEEN))
        yield f"image_{k + 1}", final_images(interpolate_images(model, plan, *real, BETWEEN))


def _source(images: Tensor, labels: Tensor | None, k: int) -> Source:
    return Source(images[k : k + 1], None, None if labels is None else labels[k : k + 1])


def make_training_film(model: DiffusionModel, folder: Path, frames: int, seed: int) -> dict[str, np.ndarray]:
    """training_images uint8 (F, K, H, W, C), drawn from the same noise by up to `frames` snapshots, and training_step (F,).

    The model's network holds the last snapshot afterwards.
    """
    height, width, channels = model.shape
    if frames == 0 or not list_snapshots(folder):
        return {
            "training_images": np.zeros((0, FILM_IMAGES, height, width, channels), np.uint8),
            "training_step": np.zeros(0, int),
        }
    steps, images = [], []
    for step, then in models_of_training(model, folder, frames):
        plan = make_plan(then, steps=min(FILM_STEPS, then.schedule.steps))
        steps.append(step)
        images.append(to_images(final_images(generate(then, plan, then.balanced_labels(FILM_IMAGES), FILM_IMAGES, seed))))
    return {"training_images": np.stack(images), "training_step": np.asarray(steps)}
