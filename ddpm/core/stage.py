"""Runs a stage and ends its process: exit statuses, one-line errors, and several processes."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import partial

import torch

from ddpm.core import launch, params, processes, seconds
from ddpm.core.device import Runtime, can_fork, process_count
from ddpm.core.files import InputError
from ddpm.core.memory import out_of_memory_names
from ddpm.core.signals import CHILD, interruptible


class Interrupted(Exception):  # noqa: N818 (a signal is no error)
    """A signal ended the work, whose state is saved. number: the number of the signal."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


def _check_params() -> None:
    # Late, and no dependency of a stage: it accepts or refuses, and changes no result.
    from ddpm.experiments.all_params import check_params

    check_params()


def run_stage(
    main: Callable[[], None],
    parallel: str | None = None,
    memory: str = "batch_size",
    communicates: bool = False,
    timed: bool = True,
) -> None:
    """Checks all of params.yaml, runs a stage, and writes how many seconds it took (see ddpm/core/seconds.py).

    An InputError becomes one line and exit status 1; any other exception is a defect and keeps its traceback.

    main: the stage's function.
    parallel: the stage's module, such as "stages.train", if it can run in several processes (`runtime.processes`).
    memory: the settings to lower where an allocation fails, which is an InputError too.
    communicates: see `process_count`.
    timed: write the seconds.
    """
    try:
        with interruptible() as stop:
            if not processes.is_started():
                # Before a fork, no threads may start: the forked process would wait for them.
                torch.set_num_threads(1)
                _check_params()
                runtime = params.load(runtime=Runtime).runtime
                if parallel and (count := process_count(runtime, communicates)) > 1:
                    if runtime.processes is None:
                        print(f"{count} processes (runtime.processes: auto)", file=sys.stderr, flush=True)
                    run = partial(run_stage, main, memory=memory) if can_fork(runtime) else None
                    launch.launch(count, parallel, memory, run)
                    if timed:
                        seconds.write_seconds(main, count)
                    return
            with out_of_memory_names(memory):
                main()
            if timed and processes.is_main_process() and CHILD not in os.environ:
                seconds.write_seconds(main, processes.world_size())
        if not processes.is_main_process() and multiprocessing.parent_process() is None:
            # Not a normal exit: now and then PyTorch's threads abort the process when the interpreter ends before process 0 does.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        processes.shutdown()
    except Interrupted as stopped:
        print(stopped, file=sys.stderr, flush=True)
        launch.mark_saved()
        # Not sys.exit, which would wait for the other processes.
        os._exit(128 + stopped.number)
    except KeyboardInterrupt:
        if processes.is_main_process() and CHILD not in os.environ:
            print("interrupted", file=sys.stderr)
        sys.exit(stop.status)
    except Exception as error:
        if CHILD in os.environ:
            launch.report(error)
        if not isinstance(error, InputError):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
