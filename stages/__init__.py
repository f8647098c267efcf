"""One script per stage, run as `python -m stages.NAME`.

This file sets up the process before a stage imports PyTorch.
"""

import sys

from ddpm.core.signals import CHILD, end_at_signals, end_with_parent

# The name of the program while Python looks for the module of `-m`; others, such as tests, keep their handlers.
if sys.argv[0] == "-m":
    end_at_signals()

import ctypes
import os
import select
import signal
import threading
from pathlib import Path

# PyTorch's threads (GNU OpenMP) spin for a long time while they wait for each other. With another busy process on the machine
# they wait for a thread that is not running: training was measured at a fifth of its speed. A short spin costs a few percent on
# an idle machine. OpenMP reads the variable when it is loaded, so it must be set before PyTorch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# glibc returns the memory of large tensors to the system as soon as they are freed, and every training step maps it again, page
# by page: a tenth to a fifth of its time on two cores. So keep the memory: no mmap below 1 GB (M_MMAP_THRESHOLD, -3) and no
# trimming (M_TRIM_THRESHOLD, -1).
if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
    for option, value in ((-3, 1 << 30), (-1, (1 << 31) - 1)):
        ctypes.CDLL(None).mallopt(option, value)


def end_with_dvc(stage: str) -> None:
    """Makes this process end with dvc, also where the parent is a shell between them. stage: the name in dvc.yaml."""
    # dvc runs a command in $SHELL. bash and zsh replace themselves with it; dash, which is /bin/sh on Debian, stays as the parent
    # and outlives dvc. Such a shell has the environment of the stage, and its own parent is the process to watch.
    shell = Path("/proc", str(os.getppid()))
    if f"DVC_STAGE={stage}".encode() in (shell / "environ").read_bytes().split(b"\0"):
        dvc = os.pidfd_open(int((shell / "stat").read_text().rpartition(")")[2].split()[1]))
        threading.Thread(target=_end_after, args=[dvc], daemon=True).start()


def _end_after(process: int) -> None:
    select.select([process], [], [])
    os.kill(os.getpid(), signal.SIGTERM)


# At import, not in main(): dvc may be killed while its stage still imports.
if sys.platform == "linux" and ("DVC_STAGE" in os.environ or CHILD in os.environ):
    try:
        end_with_parent()
        # The parent of a process that a stage started is that stage, which itself ends with dvc.
        if CHILD not in os.environ:
            end_with_dvc(os.environ["DVC_STAGE"])
    except (OSError, AttributeError):  # no /proc, or a Python without pidfd_open; the lock still prevents a second trainer
        pass
