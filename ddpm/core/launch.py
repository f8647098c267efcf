"""Several processes for one stage: how they are started, which of them this one is, and how they share work.

Started as `python -m stages.NAME`, a stage starts its own processes by PyTorch's elastic launcher where `runtime.processes` asks
for more than one; started by `torchrun ... -m stages.NAME`, on one machine or on many, it joins those that torchrun made. All
compute, process 0 alone writes files and logs. In a single process every function here is what it would be without the others.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch.distributed as dist

from ddpm.core.files import InputError
from ddpm.core.processes import is_main_process, store

# Set for the processes that a stage starts itself: their parent says what went wrong, once (and stages/__init__.py reads it).
CHILD = "DDPM_CHILD"
_SAVED = "saved"
# torchrun kills its processes 30 seconds after it asked them to end.
GRACE_SECONDS = 20


@contextmanager
def defer_signals_until_saved() -> Iterator[None]:
    """In all processes but 0: a signal to end is obeyed only when process 0 has saved, or when it had its time.

    Process 0 finishes a training step before it saves, and cannot do so without the others.
    """
    if is_main_process():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Python runs handlers between its own instructions, so not while this process waits for the others; the file descriptor is
    # written to at once, and a thread reads it.
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_after_first, args=[reader], daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        os.close(writer)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end_after_first(reader: int) -> None:
    received = os.read(reader, 1)
    if not received:
        return
    end = time.monotonic() + GRACE_SECONDS
    try:
        while time.monotonic() < end and not store().check([_SAVED]):
            time.sleep(0.05)
    finally:
        os._exit(128 + received[0])


def mark_saved() -> None:
    """Process 0 has written all that it needs to: the others may end."""
    if store() is not None:
        store().set(_SAVED, "1")


def launch(processes: int, module: str) -> None:
    """Run `python -m module` in several processes on this machine, and wait for them.

    Raises InputError that says which of them failed first, and of what; SystemExit after a signal.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The launcher would say the same as the error below, in thirty lines.
    logging.disable(logging.CRITICAL)
    os.environ[CHILD] = "1"
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as would its store, whenever a process is gone
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=module, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", module)
    except SignalException as stopped:
        sys.exit(128 + int(stopped.sigval))
    except ChildFailedError as error:
        raise _first_failure(error.failures, processes) from None
    finally:
        del os.environ[CHILD]


def report(error: Exception) -> NoReturn:
    """In a process that a stage started: leave the error to the parent, and end."""
    ours = isinstance(error, InputError)
    text = error.message if ours else "".join(traceback.format_exception(error)).rstrip()
    # Gloo says with a plain RuntimeError that another process is gone.
    lost = type(error) is RuntimeError or isinstance(error, dist.DistError)
    note = {"message": text, "timestamp": int(time.time()), "input": ours, "lost": lost}
    note |= {"key": error.key, "where": error.where} if ours else {}
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with open(path, "w", encoding="utf-8") as file:
            json.dump(note, file)
    # Not sys.exit: a process that has lost the others would wait for them while it winds up.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _first_failure(failures: dict[int, object], processes: int) -> InputError:
    """The failure that the others followed from: when one process ends, the next to hear from it fails too."""

    def order(item: tuple[int, object]) -> int:
        note = item[1].error_file_data
        return 0 if note.get("input") else 2 if note.get("lost") else 1

    number, failure = min(failures.items(), key=order)
    note = failure.error_file_data
    if note.get("input"):
        return InputError(note["message"], key=note["key"], where=note["where"])
    if "input" in note:
        print(note["message"], file=sys.stderr)
        reason = "failed with the error above"
    elif number == 0 and failure.exitcode > 128:
        sys.exit(failure.exitcode)  # it was asked to end, and has said that it saved
    elif failure.exitcode < 0 or failure.exitcode > 128:
        reason = f"was ended by {signal.Signals(-failure.exitcode if failure.exitcode < 0 else failure.exitcode - 128).name}"
    else:
        reason = f"ended with exit status {failure.exitcode}"
    return InputError(
        f"process {number} of {processes} (pid {failure.pid}) {reason}, and the others were stopped; run the same command again"
    )
