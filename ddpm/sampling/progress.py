"""How far some work is, and what it sees: a View after each evaluation of the network."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.core.progress import Progress
from ddpm.data.images import to_images
from ddpm.sampling.samplers import Frame


class SamplingProgress(NamedTuple):
    """A moment of some work: evaluations done and in all, the number of the first image in x, the level that x is at, x and the
    prediction of x0 (B, C, H, W), and whether x is finished."""

    done: int
    total: int
    first: int
    position: float
    x: Tensor
    x0: Tensor
    last: bool


def with_progress(
    frames: Iterator[Frame], done: int, total: int, first: int = 0, final: bool = True
) -> Iterator[SamplingProgress]:
    """Frames as Views, `done` evaluations of `total` having been made; returns the last Frame."""
    ahead = next(frames)
    for frame in frames:
        done += 1
        yield SamplingProgress(done, total, first, ahead.position, ahead.x, ahead.x0, False)
        ahead = frame
    yield SamplingProgress(done + 1, total, first, ahead.position, ahead.x, ahead.x0, final)
    return ahead


def final_images(views: Iterator[SamplingProgress], on_view: Callable[[SamplingProgress], object] = lambda view: None) -> Tensor:
    """Run some work to its end: its finished images (N, C, H, W); each View is handed to `on_view`.

    Raises InputError if an image is not finite, which a picture would hide.
    """
    images = []
    for view in views:
        on_view(view)
        if view.last:
            images.append(view.x)
    images = torch.cat(images)
    if not images.isfinite().all():
        raise InputError("without it the images are not finite; use 'clip', or less guidance", key="thresholding")
    return images


def pictures(
    name: str, views: Iterator[SamplingProgress], on_view: Callable[[SamplingProgress], object] = lambda view: None
) -> np.ndarray:
    """Run some work to its end, showing how far it is: its finished images, uint8 (N, H, W, C).

    Raises InputError as `final_images` does.
    """
    images = []
    for view in shown(name, views):
        on_view(view)
        if view.last:
            # Batch by batch: as floats, thousands of images need much memory.
            images.append(to_images(final_images(iter([view]))))
    return np.concatenate(images)


def shown(name: str, views: Iterator[SamplingProgress]) -> Iterator[SamplingProgress]:
    """The Views of some work, its progress shown on standard error."""
    first = next(views)
    with Progress(name, first.total, "evaluations") as progress:
        progress.advance()
        yield first
        for view in views:
            progress.advance()
            yield view
