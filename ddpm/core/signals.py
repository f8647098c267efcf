"""Ends a process with one line and exit status 128 + N after Ctrl-C or SIGTERM, while it imports too.

This module imports little: `python -m` loads it before everything that takes long.
"""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# Names a file, in the processes that a stage starts. Their parent prints the line about their end, unless process 0 made the file
# to say that it printed one.
CHILD = "DDPM_CHILD"
# On the clock of time.monotonic: when this process started, before the imports that take long.
STARTED = time.monotonic()
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], None] | signal.Handlers


class Stop:
    """number: the first signal that came, None before. time: when it came, in seconds."""

    number: int | None = None
    time: float = 0.0

    @property
    def status(self) -> int:
        """The exit status after the signal."""
        return 128 + (self.number or signal.SIGINT)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal: records the first, and ends the process at once after another one more than 1 s later; earlier ones
        are duplicates forwarded by parent processes."""
        if self.number is None:
            self.number, self.time = number, time.monotonic()
        elif time.monotonic() - self.time > 1:
            _end(number, frame)


def _numbers() -> list[int]:
    """Returns the signals to handle. A process that torchrun started keeps the default of SIGTERM: it may wait for a process that
    is gone, outside of Python."""
    return [signal.SIGINT] if "RANK" in os.environ else [*STOP_SIGNALS]


def set_handler(numbers: Iterable[int], handle: Handler) -> dict[int, Handler]:
    """Sets a handler; returns the former ones. A signal that is ignored, as in the background of a script, stays so."""
    chosen = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handle) for number in chosen}


def _end(number: int, _: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0" and CHILD not in os.environ:
        with suppress(OSError):
            os.write(2, b"interrupted\n")  # print may be interrupted within its own lock
    os._exit(128 + number)


def _importing(frame: FrameType | None) -> bool:
    while frame and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def end_at_signals() -> None:
    """Makes Ctrl-C and SIGTERM end this process at once, with one line; to call before the first import that takes long."""
    set_handler(_numbers(), _end)


@contextmanager
def handling(handle: Handler, numbers: Iterable[int] = STOP_SIGNALS) -> Iterator[None]:
    """Within this context, in the main thread, these signals call `handle(number, frame)`."""
    former = set_handler(numbers, handle) if threading.current_thread() is threading.main_thread() else {}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Makes Linux send SIGTERM to this process when its parent dies, so that no orphan computes beside the next run."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Within this context, in the main thread, Ctrl-C and SIGTERM raise KeyboardInterrupt, so that temporary files are removed.

    During an import they end the process at once: C code that imports may lose the exception. So does a second signal, see
    `Stop.note`.
    """
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if _importing(frame):
            _end(number, frame)
        is_first = stop.number is None
        stop.note(number, frame)
        if is_first:
            raise KeyboardInterrupt

    with handling(handle, _numbers()):
        yield stop
