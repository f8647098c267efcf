"""The images of the stage `edit`: inpainting, editing, variation and interpolation, and the film of the training."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ddpm.core import processes
from ddpm.core.files import InputError
from ddpm.core.limits import MAX_FRAMES, MAX_RESAMPLES
from ddpm.core.params import Section
from ddpm.data.images import to_images, to_model_range, to_tensor
from ddpm.data.prepared import Split
from ddpm.editing.inpaint import named_mask, with_repaint_jumps
from ddpm.editing.score import MASK, inpaint_methods
from ddpm.editing.tasks import ImageSource, edit_images, inpaint_images, interpolate_images, vary_images
from ddpm.networks.checkpoints import CheckpointName
from ddpm.networks.power_ema import TRACKED_SIGMA_REL, list_snapshots
from ddpm.sampling.generate import generate
from ddpm.sampling.model import DiffusionModel, at_snapshot
from ddpm.sampling.noise import latent_of
from ddpm.sampling.plan import make_plan
from ddpm.sampling.progress import final_images
from ddpm.sampling.settings import Count, Steps

STRENGTHS, AMOUNTS = (0.25, 0.5, 0.75), (0.2, 0.4)
PAIRS = 3
INTERPOLATED, STRIDE = 25, 3  # images of an interpolation; every third is in the strip
FILM_IMAGES, FILM_STEPS = 20, 20


class Edit(Section):
    """The `edit` section."""

    images: Annotated[int, Field(ge=1, le=64)]
    scored_images: Count
    steps: Steps
    repaint_jump_length: Steps
    repaint_resamples: Annotated[int, Field(ge=1, le=MAX_RESAMPLES)]
    film_frames: Annotated[int, Field(ge=0, le=MAX_FRAMES)]
    checkpoint: CheckpointName

    def fitted(self, model: DiffusionModel) -> "Edit":
        """Returns the section with at most the T steps of the model, and with jumps that fit these steps."""
        steps = min(self.steps, model.schedule.steps)
        jump_length = min(self.repaint_jump_length, max(1, steps - 1))
        repeats = self.repaint_resamples if jump_length < steps else 1
        return self.model_copy(update={"steps": steps, "repaint_jump_length": jump_length, "repaint_resamples": repeats})


def balanced_indices(test: Split, count: int) -> np.ndarray:
    """Returns the indices of `count` test images, the classes in turn as far as they go."""
    by_class = [np.flatnonzero(test.labels == label) for label in np.unique(test.labels)]
    turns = [indices[k] for k in range(max(map(len, by_class))) for indices in by_class if k < len(indices)]
    return np.asarray(turns[:count])


def make_edits(model: DiffusionModel, test: Split, folder: Path, settings: Edit, seed: int) -> dict[str, np.ndarray]:
    """Returns the arrays of samples/edits.npz, made by all processes: uint8 (K, H, W, C) inpaint_*, edit_*, interpolate_*, as
    ddpm/report/gallery.py shows them, and those of `make_training_film`.

    folder: that of the model. The model's network holds a snapshot of its training afterwards.
    """
    x0, labels = _test_images(model, test, balanced_indices(test, settings.images))
    parts: list[Callable[[], dict[str, np.ndarray]]] = [
        lambda: _inpaint(model, x0, labels, settings, seed),
        lambda: _edit(model, x0, labels, settings, seed),
        lambda: _interpolate(model, test, settings.steps, seed),
        # Last, since it changes the network.
        lambda: make_training_film(model, folder, settings.film_frames, seed),
    ]
    return {name: array for arrays in processes.map_over_ranks(parts, lambda make: make()) for name, array in arrays.items()}


def _test_images(model: DiffusionModel, test: Split, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
    labels = torch.tensor(test.labels[indices], device=model.device) if model.network.takes_labels else None
    return to_model_range(to_tensor(test.images[indices], model.device)), labels


def _inpaint(model: DiffusionModel, x0: Tensor, labels: Tensor | None, settings: Edit, seed: int) -> dict[str, np.ndarray]:
    mask = named_mask(MASK, model.shape).to(model.device)
    arrays = {"inpaint_image": x0, "inpaint_known": x0 * mask}  # missing pixels are gray
    for name, (repeats, pass_known) in inpaint_methods(model, settings.repaint_resamples).items():
        jumps = partial(with_repaint_jumps, jump_length=settings.repaint_jump_length, jump_n_sample=repeats)
        plan = make_plan(model, change=jumps, steps=settings.steps)
        for k in (1, 2):
            filled = final_images(inpaint_images(model, plan, x0, mask, labels, seed + k, pass_known))
            arrays[f"inpaint_filled_{name}_{k}"] = filled
    return {name: to_images(images) for name, images in arrays.items()}


def _edit(model: DiffusionModel, x0: Tensor, labels: Tensor | None, settings: Edit, seed: int) -> dict[str, np.ndarray]:
    plan, arrays = make_plan(model, steps=settings.steps), {"edit_image": x0}
    for strength in STRENGTHS:
        arrays[f"edit_strength_{strength:g}"] = final_images(edit_images(model, plan, x0, strength, labels, seed))
    for amount in AMOUNTS:
        each = [final_images(vary_images(model, plan, _source(x0, labels, k), amount, 1, seed + k)) for k in range(len(x0))]
        arrays[f"edit_varied_{amount:g}"] = torch.cat(each)
    return {name: to_images(images) for name, images in arrays.items()}


def _interpolate(model: DiffusionModel, test: Split, steps: int, seed: int) -> dict[str, np.ndarray]:
    """Returns interpolations between samples and between test images, for several pairs of classes."""
    arrays = {}
    plan = make_plan(model, steps=steps)
    images, labels = _test_images(model, test, np.resize(balanced_indices(test, 2 * PAIRS), 2 * PAIRS))
    for k in range(PAIRS):
        real = [_source(images, labels, 2 * k + end) for end in (0, 1)]
        # Samples of the same classes.
        samples = [ImageSource(None, latent_of(model, seed + 2 * k + end), source.labels) for end, source in enumerate(real)]
        for kind, ends in (("sample", samples), ("image", real)):
            film = to_images(final_images(interpolate_images(model, plan, *ends, INTERPOLATED)))
            arrays |= {f"interpolate_{kind}_{k + 1}": film[::STRIDE], f"interpolate_film_{kind}_{k + 1}": film}
    return arrays


def _source(images: Tensor, labels: Tensor | None, k: int) -> ImageSource:
    return ImageSource(images[k : k + 1], None, None if labels is None else labels[k : k + 1])


def snapshot_models(model: DiffusionModel, folder: Path, count: int) -> Iterator[tuple[int, DiffusionModel]]:
    """Yields (step, model) for up to `count` snapshots of a training, from first to last, with their narrowest averages.

    The weights are loaded into the model's own network, one after the other. Raises InputError if there are no snapshots.
    """
    steps = list_snapshots(folder)
    if not steps:
        raise InputError("holds no snapshots for a film; set train.snapshots above 0 and run `dvc repro train`", key=folder)
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(count, len(steps))).round().astype(int))
    for step in (steps[k] for k in chosen):
        yield step, at_snapshot(model, folder, step, TRACKED_SIGMA_REL[0])


def make_training_film(model: DiffusionModel, folder: Path, frames: int, seed: int) -> dict[str, np.ndarray]:
    """Returns training_images uint8 (F, K, H, W, C), generated from the same noise by up to `frames` snapshots, and
    training_step (F,); both are empty without snapshots. The model's network holds the last snapshot afterwards.
    """
    steps, images = [], []
    for step, snapshot in snapshot_models(model, folder, frames) if frames and list_snapshots(folder) else ():
        plan = make_plan(snapshot, steps=min(FILM_STEPS, snapshot.schedule.steps))
        labels = snapshot.balanced_labels(FILM_IMAGES)
        steps.append(step)
        images.append(to_images(final_images(generate(snapshot, plan, labels, FILM_IMAGES, seed))))
    return {
        "training_images": np.asarray(images, np.uint8).reshape(len(images), FILM_IMAGES, *model.shape),
        "training_step": np.asarray(steps, int),
    }
