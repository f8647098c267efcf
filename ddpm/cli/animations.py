"""TODO"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ddpm.core.progress import Progress
from ddpm.data.images import to_images
from ddpm.editing.stage_images import models_of_training
from ddpm.networks.power_ema import list_snapshots
from ddpm.plots.video import denoising_frames, grid_frames, progressive_picture, training_frames
from ddpm.sampling.generate import draw_images
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.plan import make_plan
from ddpm.sampling.progress import final_images, pictures
from ddpm.sampling.time_grid import denoising_steps
from ddpm.sampling.trajectory import TrajectoryRecorder


class AnimationOptions(NamedTuple):
    """What a film shows: images of a seed, what the network is told of them, and how many frames of how they become."""

    number: int
    told: Tensor | None
    seed: int
    frames: int
    columns: int
    tile: int
    upscaling: str


def denoising_film(model: DiffusionModel, plan: dict, shot: AnimationOptions, folder: Path) -> list[Image.Image]:
    """x_t above the prediction of x0, on the way from noise to images. plan: options of `make_plan`."""
    found = _recorded(model, plan, shot)
    return denoising_frames(found.x, found.x0, found.levels, shot.tile, upscaling=shot.upscaling)


def grid_film(model: DiffusionModel, plan: dict, shot: AnimationOptions, folder: Path) -> list[Image.Image]:
    """x_t alone, of many images in one grid."""
    found = _recorded(model, plan, shot)
    return grid_frames(found.x, found.levels, shot.columns, shot.tile, shot.upscaling)


def moments(model: DiffusionModel, plan: dict, shot: AnimationOptions) -> Image.Image:
    """A picture of the way from noise to images: a row for each image, a column for each frame."""
    found = _recorded(model, plan, shot)
    return progressive_picture(found.x, found.levels, shot.tile, shot.number, shot.upscaling)


def _recorded(model: DiffusionModel, plan: dict, shot: AnimationOptions) -> TrajectoryRecorder:
    made = make_plan(model, **plan)
    recorder = TrajectoryRecorder(denoising_steps(made.grid), shot.frames)
    pictures(made.label, draw_images(model, made, shot.told, shot.number, shot.seed), recorder)
    return recorder


def training_film(model: DiffusionModel, plan: dict, shot: AnimationOptions, folder: Path) -> list[Image.Image]:
    """What the network drew from the same noise as it learned, by the snapshots in its folder."""
    made, steps, grids = make_plan(model, **plan), [], []
    total = min(shot.frames, len(list_snapshots(folder)))
    with Progress("snapshots", max(1, total), "snapshots") as progress:
        for step, _ in models_of_training(model, folder, shot.frames):
            steps.append(step)
            grids.append(to_images(final_images(draw_images(model, made, shot.told, shot.number, shot.seed))))
            progress.advance()
    return training_frames(np.stack(grids), steps, shot.columns, shot.tile, shot.upscaling)


class Animation(NamedTuple):
    """Something to film: how, of how many images if nobody says, and how often each stands in a frame; how it is shown in one
    picture, if it can be; and whether the weights are those of the snapshots, whatever the checkpoint."""

    film: Callable[[DiffusionModel, dict, AnimationOptions, Path], list[Image.Image]]
    number: int
    copies: int = 1
    still: Callable[[DiffusionModel, dict, AnimationOptions], Image.Image] | None = None
    of_snapshots: bool = False


ANIMATIONS: dict[str, Animation] = {
    "denoising": Animation(denoising_film, 8, 2, moments),
    "grid": Animation(grid_film, 50, still=moments),
    "training": Animation(training_film, 50, of_snapshots=True),
}
