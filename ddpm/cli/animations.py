"""The films of the command `animate`: frames of sampling and of training."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ddpm.core.progress import Progress
from ddpm.data.images import to_images
from ddpm.editing.stage_images import snapshot_models
from ddpm.networks.power_ema import list_snapshots
from ddpm.plots.video import denoising_frames, grid_frames, progressive_picture, training_frames
from ddpm.sampling.generate import generate
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.plan import SamplingPlan
from ddpm.sampling.progress import collect_images, final_images
from ddpm.sampling.time_grid import denoising_steps
from ddpm.sampling.trajectory import TrajectoryRecorder


class AnimationOptions(NamedTuple):
    """What a film shows.

    number: number of images.
    labels: their conditioning, or None.
    seed: the seed of their noise.
    frames: the largest number of frames.
    columns: images per row.
    tile: the least length of the longer side of an image, in pixels.
    upscaling: a key of UPSCALING.
    """

    number: int
    labels: Tensor | None
    seed: int
    frames: int
    columns: int
    tile: int
    upscaling: str


def denoising_film(model: DiffusionModel, plan: SamplingPlan, options: AnimationOptions, folder: Path) -> list[Image.Image]:
    """Returns frames of x_t above the prediction of x0."""
    recorded = _record(model, plan, options)
    return denoising_frames(recorded.x, recorded.x0, recorded.levels, options.tile, upscaling=options.upscaling)


def grid_film(model: DiffusionModel, plan: SamplingPlan, options: AnimationOptions, folder: Path) -> list[Image.Image]:
    """Returns frames of a grid of x_t."""
    recorded = _record(model, plan, options)
    return grid_frames(recorded.x, recorded.levels, options.columns, options.tile, options.upscaling)


def denoising_still(model: DiffusionModel, plan: SamplingPlan, options: AnimationOptions) -> Image.Image:
    """Returns a picture of x_t with a row for each image and a column for each frame."""
    recorded = _record(model, plan, options)
    return progressive_picture(recorded.x, recorded.levels, options.tile, options.number, options.upscaling)


def _record(model: DiffusionModel, plan: SamplingPlan, options: AnimationOptions) -> TrajectoryRecorder:
    recorder = TrajectoryRecorder(denoising_steps(plan.grid), options.frames)
    collect_images(plan.label, generate(model, plan, options.labels, options.number, options.seed), recorder)
    return recorder


def training_film(model: DiffusionModel, plan: SamplingPlan, options: AnimationOptions, folder: Path) -> list[Image.Image]:
    """Returns a frame for each snapshot in `folder`: its samples from the same noise."""
    steps, grids = [], []
    total = min(options.frames, len(list_snapshots(folder)))
    with Progress("snapshots", max(1, total), "snapshots") as progress:
        for step, _ in snapshot_models(model, folder, options.frames):
            steps.append(step)
            grids.append(to_images(final_images(generate(model, plan, options.labels, options.number, options.seed))))
            progress.advance()
    return training_frames(np.stack(grids), steps, options.columns, options.tile, options.upscaling)


class Animation(NamedTuple):
    """A value of `animate --what`.

    film: function that returns the frames.
    number: the default number of images.
    copies: how often a frame shows an image.
    still: function that returns a picture of the frames, or None.
    of_snapshots: whether the film uses the snapshots of the training instead of a checkpoint.
    """

    film: Callable[[DiffusionModel, SamplingPlan, AnimationOptions, Path], list[Image.Image]]
    number: int
    copies: int = 1
    still: Callable[[DiffusionModel, SamplingPlan, AnimationOptions], Image.Image] | None = None
    of_snapshots: bool = False


ANIMATIONS: dict[str, Animation] = {
    "denoising": Animation(denoising_film, 8, 2, denoising_still),
    "grid": Animation(grid_film, 50, still=denoising_still),
    "training": Animation(training_film, 50, of_snapshots=True),
}
