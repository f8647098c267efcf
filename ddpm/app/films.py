"""What a film shows of some work: the moments that are kept of it, and the models of a training in turn."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ddpm.app.views import View
from ddpm.data.batches import to_images
from ddpm.files import InputError
from ddpm.networks.posthoc import WIDTHS
from ddpm.networks.snapshots import list_snapshots, read_snapshot
from ddpm.reporting.movies import choose_frames
from ddpm.sampling.model import DiffusionModel
from ddpm.weights import put_weights


class Recorder:
    """Keeps `count` moments of work that takes `total` evaluations, of up to `most` images of its first batch.

    It is handed every View. levels (F,), x and x0 uint8 (F, K, H, W, C) are what it kept, the last moment always.
    """

    def __init__(self, total: int, count: int, most: int = 100):
        self.kept, self.most = set(choose_frames(total, count)), most
        self.levels: list[float] = []
        self._x: list[np.ndarray] = []
        self._x0: list[np.ndarray] = []

    def __call__(self, view: View) -> None:
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


def models_of_training(model: DiffusionModel, folder: Path, count: int) -> Iterator[tuple[int, DiffusionModel]]:
    """Up to `count` of the snapshots of a training, (step, the model with their narrowest averages), from first to last.

    The model's own network is filled with them, one after the other. Raises InputError if there are none.
    """
    steps = list_snapshots(folder)
    if not steps:
        raise InputError(f"{folder}: holds no snapshots to make a film of; set train.snapshots above 0 and run `dvc repro train`")
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(count, len(steps))).round().astype(int))
    for step in (steps[k] for k in chosen):
        put_weights(read_snapshot(folder, step)[WIDTHS[0]], model.network, folder, "train")
        yield step, model._replace(network=model.network.to(model.device, memory_format=torch.channels_last).eval())
