"""What watches over a training: numbers that go wrong, signals, and where the time goes. None of it makes a step wait."""

import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ddpm.core import launch, processes
from ddpm.core.files import InputError

# float16's scale is found by trial: from 2^16 it may be halved this often before a gradient is taken for a wrong one.
FLOAT16_TRIALS = 24


class NonFiniteGuard:
    """Counts, on the device, the updates in a row that were left out because their gradient was not finite.

    `allowed` in a row are forgiven; one more, and `check` stops the training.
    """

    def __init__(self, allowed: int, device: torch.device):
        self.allowed = allowed
        self.streak = torch.zeros((), dtype=torch.int64, device=device)
        self.failed_at = torch.zeros((), dtype=torch.int64, device=device)

    def note(self, step: int, bad: Tensor) -> None:
        """Count the update of this step, from 1."""
        self.streak = (self.streak + 1) * bad
        fatal = (self.streak > self.allowed) & (self.failed_at == 0)
        self.failed_at = self.failed_at + fatal * step

    def check(self) -> None:
        """Raises InputError if the training has gone wrong. This waits for the device."""
        if step := int(self.failed_at):
            times = f", and {self.allowed + 1} in a row are too many" if self.allowed else ""
            raise InputError(
                f"the loss or its gradient is not finite at step {step}{times}; lower train.learning_rate or "
                "train.gradient_clip, set runtime.precision to float32, or let more such updates be skipped "
                "(train.max_nonfinite_skips). The last good state is kept",
                key="train",
            )


class PhaseTimer:
    """Seconds by phase of the work; on a GPU by its own clock, which is read late."""

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.marks: list[tuple[str, float | torch.cuda.Event]] = []
        self.seconds: dict[str, float] = defaultdict(float)

    def enter(self, name: str) -> None:
        """What is done from here on belongs to this phase."""
        if self.on_gpu:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self.marks.append((name, mark))

    def read(self) -> dict[str, float]:
        """Seconds by phase since the last call. This waits for the device; the time that follows has no phase yet."""
        self.enter("")
        if self.on_gpu:
            self.marks[-1][1].synchronize()
        found: dict[str, float] = defaultdict(float)
        for (name, start), (_, end) in zip(self.marks, self.marks[1:], strict=False):
            found[name] += start.elapsed_time(end) / 1000 if self.on_gpu else end - start
        self.marks = []
        for name, seconds in found.items():
            self.seconds[name] += seconds
        return found

    def summary(self) -> str:
        """Shares of the whole, the largest first."""
        total = sum(self.seconds.values()) or 1.0
        shares = sorted(self.seconds.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in shares if seconds / total >= 0.005)


class StopSignal:
    """Notes SIGTERM and SIGINT: `received` is the number of the one that came, None before. One that comes more than a second
    later is obeyed at once; until then it is taken for the same, since several parents may pass one on."""

    def __init__(self):
        self.received: int | None = None
        self.time = 0.0

    def note(self, number: int, _: object) -> None:
        if self.received is None:
            self.received, self.time = number, time.monotonic()
        elif time.monotonic() - self.time > 1:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextmanager
def stop_signals() -> Iterator[StopSignal]:
    """Within this context, a signal to end is only noted (in process 0), or waits until process 0 has saved (in all others)."""
    noted = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    if not processes.is_main_process():
        with launch.defer_signals_until_saved():
            yield noted
        return
    previous = {number: signal.signal(number, noted.note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
