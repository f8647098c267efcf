"""Trajectories: x_t and the predictions of x0 at some steps of a sampling run."""

import numpy as np

from ddpm.core.files import InputError
from ddpm.data.images import to_images
from ddpm.sampling.progress import SamplingProgress


class TrajectoryRecorder:
    """Records `count` of the `total` steps of an image for the images 0 .. max_images - 1; call it with every SamplingProgress.

    levels (F,) are the recorded positions, x and x0 uint8 (F, K, H, W, C) the images, in any number of batches; the last step is
    always among them.
    """

    def __init__(self, total: int, count: int, max_images: int = 100):
        self.total, self.max_images = total, max_images
        self._frames: dict[int, list[SamplingProgress]] = {step: [] for step in choose_frames(total, count)}

    def __call__(self, update: SamplingProgress) -> None:
        step, count = (update.done - 1) % self.total, self.max_images - update.first
        if step in self._frames and count > 0:
            images = {"x": to_images(update.x[:count]), "x0": to_images(update.x0[:count])}
            self._frames[step].append(update._replace(**images))

    def _images(self, name: str) -> np.ndarray:
        return np.stack([np.concatenate([getattr(update, name) for update in frames]) for frames in self._frames.values()])

    @property
    def levels(self) -> list[float]:
        return [frames[0].position for frames in self._frames.values() if frames]

    @property
    def x(self) -> np.ndarray:
        return self._images("x")

    @property
    def x0(self) -> np.ndarray:
        return self._images("x0")


def choose_frames(total: int, count: int) -> list[int]:
    """Returns increasing indices of min(count, total) frames out of `total`, denser towards the end, where details appear.

    The last frame is always among them, and the first if there are two or more. Raises InputError for total or count below 1.
    """
    if total < 1 or count < 1:
        raise InputError(f"{count} of {total} frames are not possible; both must be 1 or more", key="frames")
    order = np.arange(min(count, total))
    positions = 1 - (order[::-1] / max(1, len(order) - 1)) ** 1.5
    # Where several would be the same frame near the end, the earlier ones move forward.
    slack = (positions * (total - 1)).round().astype(int) - order
    return (np.minimum.accumulate(slack[::-1])[::-1] + order).tolist()
