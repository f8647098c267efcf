"""Ends a process with one line and exit status 128 + N after Ctrl-C or SIGTERM, while it imports too.

This module imports little: `python -m` loads it before everything that takes long.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# Names a file, in the processes that a stage starts. Their parent prints the line about their end, unless process 0 made the file
# to say that it printed one.
CHILD = "DDPM_CHILD"


class Stop:
    """number: the signal that ended the work, SIGINT before there is one. time: when it came, in seconds, None before."""

    number: int = signal.SIGINT
    time: float | None = None


def _numbers() -> list[int]:
    """Returns the signals to handle. A process that torchrun started keeps the default of SIGTERM: it may wait for a process that
    is gone, outside of Python. A signal that is ignored, as under nohup, stays so."""
    numbers = [signal.SIGINT] if "RANK" in os.environ else [signal.SIGINT, signal.SIGTERM]
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


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
    for number in _numbers():
        signal.signal(number, _end)


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Within this context, in the main thread, Ctrl-C and SIGTERM raise KeyboardInterrupt, so that temporary files are removed.

    During an import they end the process at once: C code that imports may lose the exception. So does a second signal more than
    1 s later; earlier ones are duplicates forwarded by parent processes.
    """
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if _importing(frame) or (stop.time is not None and time.monotonic() - stop.time > 1):
            _end(number, frame)
        if stop.time is None:
            stop.number, stop.time = number, time.monotonic()
            raise KeyboardInterrupt

    numbers = _numbers() if threading.current_thread() is threading.main_thread() else []
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
