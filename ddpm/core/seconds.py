"""Measures the seconds that a stage takes, and writes them for the report: reports/seconds/STAGE.json.

They begin with the process that the user or DVC started, so imports count. A resumed training counts the processes that were
killed before, up to their last saved states; a resumed preparation counts the last process only.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from ddpm.core.files import write_json
from ddpm.core.paths import SECONDS_DIR
from ddpm.core.signals import CHILD, STARTED

_earlier = 0.0


def elapsed() -> float:
    """Returns the seconds of this process, and those before it that were given to `resume`."""
    return _earlier + time.monotonic() - STARTED


def resume(earlier: float) -> None:
    """Counts the seconds of killed processes, whose work this process resumes, here and in the parent that started it."""
    global _earlier
    _earlier = earlier
    if CHILD in os.environ:
        _note().write_text(str(earlier))


def resume_in_parent() -> None:
    """Counts the seconds that a process, which this one started, gave to `resume`."""
    global _earlier
    if _note().exists():
        _earlier = float(_note().read_text())


def _note() -> Path:
    return Path(os.environ[CHILD]).with_name("earlier")


def write_seconds(main: Callable, processes: int) -> None:
    """Writes the seconds so far, and the number of processes, of the stage whose module defines `main`; else it does nothing."""
    # The module of `python -m stages.NAME` is called __main__.
    spec = main.__globals__.get("__spec__")
    if spec and spec.name.startswith("stages."):
        file = SECONDS_DIR / f"{spec.name.removeprefix('stages.')}.json"
        write_json(file, {"seconds": round(elapsed(), 2), "processes": processes})
