"""Trajectories: x_t and the predictions of x0 at some steps of a sampling run."""

import numpy as np

from ddpm.core.files import InputError
from ddpm.data.images import to_images
from ddpm.sampling.progress import SamplingProgress


class TrajectoryRecorder:
    """Records `count` of `total` steps, for up to `max_images` images of the first batch; call it with every SamplingProgress.

    levels (F,) are the recorded positions, x and x0 uint8 (F, K, H, W, C) the images; the last step is always among them.
    """

    def __init__(self, total: int, count: int, max_images: int = 100):
        self.steps, self.max_images = set(choose_frames(total, count)), max_images
        self.levels: list[float] = []
        self._x: list[np.ndarray] = []
        self._x0: list[np.ndarray] = []

    def __call__(self, update: SamplingProgress) -> None:
        if update.first == 0 and update.done - 1 in self.steps:
            self.levels.append(update.position)
            self._x.append(to_images(update.x[: self.max_images]))
            self._x0.append(to_images(update.x0[: self.max_images]))

    @property
    def x(self) -> np.ndarray:
        return np.stack(self._x)

    @property
    def x0(self) -> np.ndarray:
        return np.stack(self._x0)


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
