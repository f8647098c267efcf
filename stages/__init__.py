"""One script per stage, run as `python -m stages.NAME`.

This file runs before a stage imports anything slow.
"""

import ctypes
import os
import signal
import sys

# PyTorch's threads (GNU OpenMP) spin for a long time when they wait for each other. With another busy process on the machine they
# then wait for a thread that is not running: training was seen at a fifth of its speed. A short spin costs nothing on an idle
# machine. Read when OpenMP is loaded, so it must be set before PyTorch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def die_with_parent() -> None:
    """On Linux, ask for SIGTERM when the parent (dvc) dies: an orphaned trainer would write beside the next one."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)


# Here and not in main(): a dvc that is killed while its stage still imports must not leave it running either.
if "DVC_STAGE" in os.environ:
    die_with_parent()
