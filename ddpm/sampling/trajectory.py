"""What a film shows of some work: the moments that are kept of it, and the models of a training in turn."""

import numpy as np

from ddpm.core.files import InputError
from ddpm.data.images import to_images
from ddpm.sampling.progress import SamplingProgress

TRAJECTORY_FRAMES = 24


def _frames_to_keep(steps: int) -> set[int]:
    """Steps whose frames are kept, the last always; denser towards the end, where a picture takes shape."""
    positions = 1 - np.linspace(1, 0, min(TRAJECTORY_FRAMES, steps)) ** 1.5
    return set(np.unique(np.round(positions * (steps - 1)).astype(int)).tolist())


class TrajectoryRecorder:
    """Keeps `count` moments of work that takes `total` evaluations, of up to `most` images of its first batch.

    It is handed every View. levels (F,), x and x0 uint8 (F, K, H, W, C) are what it kept, the last moment always.
    """

    def __init__(self, total: int, count: int, most: int = 100):
        self.kept, self.most = set(choose_frames(total, count)), most
        self.levels: list[float] = []
        self._x: list[np.ndarray] = []
        self._x0: list[np.ndarray] = []

    def __call__(self, view: SamplingProgress) -> None:
        if view.first == 0 and view.done - 1 in self.kept:
            self.levels.append(view.position)
            self._x.append(to_images(view.x[: self.most]))
            self._x0.append(to_images(view.x0[: self.most]))

    @property
    def x(self) -> np.ndarray:
        return np.stack(self._x)

    @property
    def x0(self) -> np.ndarray:
        return np.stack(self._x0)


def choose_frames(total: int, count: int) -> list[int]:
    """Indices of min(count, total) frames out of `total`, rising; denser towards the end, where a picture takes shape.

    The last is always among them, the first too if there are two or more. Raises InputError for less than one of either.
    """
    if total < 1 or count < 1:
        raise InputError(f"{count} of {total} cannot be chosen; ask for one at least, of one at least", key="frames")
    order = np.arange(min(count, total))
    positions = 1 - (order[::-1] / max(1, len(order) - 1)) ** 1.5
    # Where several would be the same frame near the end, the earlier ones move forward.
    slack = (positions * (total - 1)).round().astype(int) - order
    return (np.minimum.accumulate(slack[::-1])[::-1] + order).tolist()
