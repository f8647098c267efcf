"""Starts a stage in several processes, reports their errors as one, and lets process 0 save before the others end.

Started as `python -m stages.NAME`, a stage starts its own processes with PyTorch's elastic launcher (`process_count` says how
many). They are forked where that is possible, since then they need not import PyTorch again. Started by
`torchrun ... -m stages.NAME`, on one or several machines, it joins the processes of torchrun.
"""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from ddpm.core import seconds
from ddpm.core.files import InputError
from ddpm.core.processes import store
from ddpm.core.signals import CHILD, STOP_SIGNALS, Handler, end_at_signals, end_with_parent, handling, set_handler

_SAVED = "saved"
# Below the 30 seconds after which torchrun kills its processes.
GRACE_SECONDS = 20
RESEND_SECONDS = 0.05
# While this process forks: the handlers of its signals, and the signals that came.
_handlers: dict[int, Handler] = {}
_held: list[int] = []


@contextmanager
def defer_signals_until_saved() -> Iterator[None]:
    """Delays SIGTERM and SIGINT, in a process other than 0, until process 0 has saved, for at most GRACE_SECONDS.

    Process 0 finishes a training step before it saves, which needs the other processes.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Python runs signal handlers between its own instructions, so not during a collective operation. The wakeup file descriptor
    # is written at once, and a thread reads it.
    with handling(lambda *_: None):
        former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=_end_after_first, args=[reader], daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(former)
            os.close(writer)


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
    """Tells the other processes that process 0 has saved and has printed that, so that they may end."""
    if path := os.environ.get(CHILD):
        Path(path).touch()
    if store() is not None:
        store().set(_SAVED, "1")


def launch(processes: int, module: str, memory: str, run: Callable[[], None] | None = None) -> None:
    """Runs `python -m module` in several processes on this machine, and waits for them.

    memory: the settings to lower where the memory does not suffice.
    run: does the work of the module, in processes that are forked from this one (see `can_fork`).

    Raises InputError with the first failure, and SystemExit, after one line, after a signal.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The launcher would log the error below in thirty lines.
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its store logs every lost connection
    with tempfile.TemporaryDirectory() as folder:
        # The launcher would leave its empty folders of logs.
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=module, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
            max_restarts=0, start_method="fork" if run else "spawn", logs_specs=DefaultLogsSpecs(log_dir=folder),
        )  # fmt: skip
        os.environ[CHILD] = os.path.join(folder, "printed")
        try:
            if run:
                os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals)
                elastic_launch(config, _forked)(run)
            else:
                elastic_launch(config, sys.executable)("-m", module)
            seconds.resume_in_parent()
        except SignalException as stopped:
            _end(int(stopped.sigval))
        except ChildFailedError as error:
            number, failure = min(error.failures.items(), key=_rank_of_cause)
            if number == 0 and failure.exitcode > 128 and "input" not in failure.error_file_data:
                _end(failure.exitcode - 128)  # a signal to process 0 alone
            raise _explain(f"process {number} of {processes}", failure, memory) from None
        finally:
            del os.environ[CHILD]


def _end(number: int) -> NoReturn:
    """Ends the parent after a signal, with a line if process 0 has printed none."""
    if not Path(os.environ[CHILD]).exists():
        print("interrupted", file=sys.stderr)
    sys.exit(128 + number)


def _forked(run: Callable[[], None]) -> None:
    """Runs in a forked process, which has the signal handlers of its parent, and does not end with it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_at_signals()
    end_with_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    run()


def _hold_signals() -> None:
    """Makes signals wait while this process forks, since an exception that a handler raises in a hook of a fork is lost.

    A mask does not suffice here, since another thread may receive the signal. It is for the new process, which would handle
    signals as its parent does until it has handlers of its own (`_forked`).
    """
    _handlers.update(set_handler(STOP_SIGNALS, lambda number, _: _held.append(number)))
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _release_signals() -> None:
    """Lets signals arrive again. One that was held is sent again a little later, outside of this hook."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    while _handlers:
        signal.signal(*_handlers.popitem())
    while _held:
        threading.Timer(RESEND_SECONDS, os.kill, (os.getpid(), _held.pop())).start()


def report(error: Exception) -> NoReturn:
    """Passes the error of a process that a stage started to its parent, and ends the process."""
    is_input = isinstance(error, InputError)
    text = error.message if is_input else "".join(traceback.format_exception(error)).rstrip()
    # Gloo raises a plain RuntimeError when another process is gone.
    lost = type(error) is RuntimeError or isinstance(error, dist.DistError)
    note = {"message": text, "timestamp": int(time.time()), "input": is_input, "lost": lost}
    note |= {"key": error.key, "where": error.where} if is_input else {}
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with open(path, "w", encoding="utf-8") as file:
            json.dump(note, file)
    # Not sys.exit, which would wait for processes that may be gone.
    sys.stdout.flush()
    sys.stderr.flush()
    if lost:
        time.sleep(1)  # so that the launcher sees the process first that caused this
    os._exit(1)


def _rank_of_cause(item: tuple[int, object]) -> int:
    """Orders failures by process: the loss of a process makes the others fail too, so that loss comes last."""
    note = item[1].error_file_data
    return 0 if note.get("input") else 2 if note.get("lost") else 1


def _explain(name: str, failure: object, memory: str) -> InputError:
    """Returns the error of the process that failed first."""
    note, status = failure.error_file_data, failure.exitcode
    if note.get("input"):
        return InputError(note["message"], key=note["key"], where=note["where"])
    killed_by = {number.value: number.name for number in signal.Signals}.get(-status if status < 0 else status - 128)
    if "input" in note:
        print(note["message"], file=sys.stderr)
        reason = "failed with the error above"
    elif killed_by:
        reason = f"was killed by {killed_by}"
    else:
        reason = f"ended with exit status {status}"
    # The kernel kills so when memory runs out.
    advice = f"; if the memory did not suffice, lower {memory}" if killed_by == "SIGKILL" else ""
    message = f"{name} (pid {failure.pid}) {reason}, and the others were stopped; run the same command again{advice}"
    return InputError(message)
