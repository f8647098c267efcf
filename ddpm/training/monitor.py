"""Monitors of a training: losses, non-finite gradients, the time by phase, and signals. None of them makes a step wait."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.core import launch, processes
from ddpm.core.files import InputError
from ddpm.core.signals import Stop, handling

# GradScaler finds the scale of float16 by trial: it may halve the scale from 2^16 this often before a gradient counts as wrong.
FLOAT16_TRIALS = 24
QUARTERS = ("0_25", "25_50", "50_75", "75_100")  # of the levels 1..T, in percent


class NonFiniteGuard:
    """Counts, on the device, the skipped updates in a row; `check` raises after more than `allowed`."""

    def __init__(self, allowed: int, device: torch.device):
        self.allowed = allowed
        self.streak = torch.zeros((), dtype=torch.int64, device=device)
        self.failed_at = torch.zeros((), dtype=torch.int64, device=device)

    def note(self, step: int, bad: Tensor) -> None:
        """Counts the update of a step, from 1; bad: whether its gradient is not finite."""
        self.streak = (self.streak + 1) * bad
        fatal = (self.streak > self.allowed) & (self.failed_at == 0)
        self.failed_at = self.failed_at + fatal * step

    def check(self) -> None:
        """Raises InputError after too many skipped updates in a row. This waits for the device."""
        if step := int(self.failed_at):
            times = f", and {self.allowed + 1} in a row are too many" if self.allowed else ""
            raise InputError(
                f"the loss or its gradient is not finite at step {step}{times}; lower train.learning_rate or "
                "train.gradient_clip, set runtime.precision to float32, or let more such updates be skipped "
                "(train.max_nonfinite_skips). The last good state is kept",
                key="train",
            )


class LossSums:
    """Sums the losses and gradient norms of the steps since the last `read`, on the device. Steps with a gradient that is not
    finite do not count.

    levels: T, the number of noise levels.
    values: the sums of losses, gradient norms and steps; then of losses and of images by quarter of the levels.
    """

    def __init__(self, levels: int, device: torch.device):
        self.levels = levels
        self.values = torch.zeros(3 + 2 * len(QUARTERS), device=device)
        self.quarters = torch.arange(len(QUARTERS), device=device)

    def add(self, losses: Tensor, weight: Tensor, index: Tensor, norm: Tensor) -> None:
        """Adds a step: losses, importance weights and levels of its images, (B,) each, and the norm of the gradient, ()."""
        in_quarter = ((index - 1) * len(QUARTERS) // self.levels)[:, None] == self.quarters
        by_quarter = [(losses[:, None] * in_quarter).sum(0), in_quarter.sum(0).to(losses.dtype)]
        row = torch.cat([torch.stack([(losses * weight).mean(), norm, torch.ones_like(norm)]), *by_quarter])
        self.values += torch.where(norm.isfinite(), row, 0)

    def read(self) -> dict[str, float]:
        """Returns the mean loss, over all levels and by quarter, and the mean gradient norm since the last call.

        A value for which there was no finite step is missing. This waits for the device.
        """
        losses, norms, count, *quarters = self.values.tolist()
        self.values.zero_()
        if not count:
            return {}
        pairs = zip(QUARTERS, quarters[: len(QUARTERS)], quarters[len(QUARTERS) :], strict=True)
        by_quarter = {f"loss_t/{name}": total / images for name, total, images in pairs if images}
        return {"loss": losses / count, "gradient_norm": norms / count, **by_quarter}


class PhaseTimer:
    """Measures the seconds of each phase of the work; on a GPU with events, which are read late."""

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.marks: list[tuple[str, float | torch.cuda.Event]] = []
        self.seconds: dict[str, float] = defaultdict(float)

    def enter(self, name: str) -> None:
        """Begins a phase."""
        if self.on_gpu:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self.marks.append((name, mark))

    def read(self) -> dict[str, float]:
        """Returns the seconds by phase since the last call, and ends the current phase. This waits for the device."""
        self.enter("")
        if self.on_gpu:
            self.marks[-1][1].synchronize()
        latest: dict[str, float] = defaultdict(float)
        for (name, start), (_, end) in pairwise(self.marks):
            latest[name] += start.elapsed_time(end) / 1000 if self.on_gpu else end - start
        self.marks = []
        for name, seconds in latest.items():
            self.seconds[name] += seconds
        return latest

    def summary(self) -> str:
        """Returns the share of each phase in the total time, the largest first."""
        total = sum(self.seconds.values()) or 1.0
        shares = sorted(self.seconds.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in shares if seconds / total >= 0.005)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Records stop signals within this context, in process 0; in the others they wait until process 0 has saved."""
    stop = Stop()
    with handling(stop.note) if processes.is_main_process() else launch.defer_signals_until_saved():
        yield stop
