"""Images in the making: what a model's methods iterate over, so that a caller sees each denoising step and may stop."""

from collections.abc import Callable, Generator, Iterator
from functools import wraps
from inspect import signature
from itertools import chain, islice
from typing import Any, ParamSpec

import numpy as np
from torch import Tensor

from ddpm.api.images import DenoisingStep, Images
from ddpm.data.images import to_images
from ddpm.editing.tasks import ImageSource, vary_images
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.plan import SamplingPlan, make_plan
from ddpm.sampling.progress import SamplingProgress, final_images, with_progress_bar

Arguments = ParamSpec("Arguments")
Work = Generator[SamplingProgress, None, Images]


class Generation:
    """Images in the making. Iterate over it once, for a SamplingProgress after each denoising step. Leave the loop to stop.

    plan: the sampling plan.
    images: the finished images; None until the iteration has ended.

    If a sample of a seed must be generated before it is edited, and if there are several strengths, `done` and `total` count the
    steps of each of these parts.
    """

    def __init__(self, plan: SamplingPlan, work: Work):
        self.plan, self._work = plan, work
        self.images: Images | None = None

    def __iter__(self) -> Iterator[SamplingProgress]:
        if self.images is None:
            self.images = yield from self._work

    def steps(self) -> Iterator[DenoisingStep]:
        """Yields the images after each denoising step."""
        for update in self:
            yield DenoisingStep(update.done, update.total, update.position, to_images(update.x), to_images(update.x0))

    def run(self) -> Images:
        """Returns the finished images, and shows the progress on standard error."""
        updates = iter(self)
        for first in updates:
            part = chain([first], islice(updates, first.total - first.done))
            for _ in with_progress_bar(self.plan.label, part):
                pass
        return self.images


def at_once(method: Callable[Arguments, Generation]) -> Callable[Arguments, Images]:
    """Returns the method that takes the same arguments, generates the images and returns them."""

    @wraps(method)
    def run(*values: Arguments.args, **options: Arguments.kwargs) -> Images:
        return method(*values, **options).run()

    run.__signature__ = signature(method).replace(return_annotation=Images)
    return run


def collected(plan: SamplingPlan, work: Iterator[SamplingProgress], **about: Any) -> Work:
    """Yields from a task and returns its finished images. about: further fields of Images.

    Raises InputError if an image is not finite, which conversion to uint8 would hide.
    """
    batches = []
    for update in work:
        if update.last:
            # Batch by batch: as floats, thousands of images need much memory.
            batches.append(to_images(final_images(iter([update]))))
        yield update
    return Images(np.concatenate(batches), sampler=plan.label, nfe=plan.nfe, **about)


def decoded(
    model: DiffusionModel, source: ImageSource, plan: SamplingPlan | None = None
) -> Generator[SamplingProgress, None, Tensor]:
    """Yields from the decoding of a source, unless it is an image, and returns the image (1, C, H, W) of `source_image`."""
    if source.image is not None:
        return source.image
    for update in vary_images(model, plan or make_plan(model), source, 0.0, 1, 0):
        yield update
    return final_images(iter([update]))
