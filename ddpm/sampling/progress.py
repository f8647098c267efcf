"""Progress of sampling: a generator that yields a SamplingProgress after each step, so that its caller shows or stops it."""

from collections.abc import Callable, Generator, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.core.progress import Progress
from ddpm.data.images import to_images
from ddpm.sampling.samplers import Frame


class SamplingProgress(NamedTuple):
    """The state after a denoising step.

    done: steps done, those of earlier batches included.
    total: steps in all.
    first: the number of the first image in x.
    position: the position on the grid that x is at.
    x: (B, C, H, W).
    x0: the last prediction of x0, (B, C, H, W).
    last: whether x holds finished images.
    """

    done: int
    total: int
    first: int
    position: float
    x: Tensor
    x0: Tensor
    last: bool


Callback = Callable[[SamplingProgress], object]


def with_progress(
    frames: Iterator[Frame], done: int, total: int, first: int = 0, final: bool = True
) -> Generator[SamplingProgress, None, Frame]:
    """Yields each frame as a SamplingProgress, and returns the last frame.

    done: steps done before, of `total`.
    final: whether the frame at position 0 holds finished images.
    """
    for count, frame in enumerate(frames, done + 1):
        yield SamplingProgress(count, total, first, *frame, final and frame.position == 0)
    return frame


def final_images(progress: Iterator[SamplingProgress], callback: Callback = lambda update: None) -> Tensor:
    """Runs a task to its end and returns its finished images (N, C, H, W); `callback` receives every SamplingProgress.

    Raises InputError if an image is not finite, which conversion to uint8 would hide.
    """
    images = []
    for update in progress:
        callback(update)
        if update.last:
            images.append(update.x)
    images = torch.cat(images)
    if not images.isfinite().all():
        raise InputError("without it the images are not finite; use 'clip', or less guidance", key="thresholding")
    return images


def collect_images(name: str, progress: Iterator[SamplingProgress], callback: Callback = lambda update: None) -> np.ndarray:
    """Runs a task to its end with a progress bar and returns its finished images, uint8 (N, H, W, C).

    Raises InputError as `final_images` does.
    """
    images = []
    for update in with_progress_bar(name, progress):
        callback(update)
        if update.last:
            # Batch by batch: as floats, thousands of images need much memory.
            images.append(to_images(final_images(iter([update]))))
    return np.concatenate(images)


def with_progress_bar(name: str, progress: Iterator[SamplingProgress]) -> Iterator[SamplingProgress]:
    """Yields from a task, and shows its progress on standard error."""
    first = next(progress)
    with Progress(name, first.total, "steps") as bar:
        for update in chain([first], progress):
            bar.advance()
            yield update
