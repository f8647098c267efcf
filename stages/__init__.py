"""One script per stage, run as `python -m stages.NAME`.

This file runs before a stage imports anything slow.
"""

import ctypes
import os
import signal
import sys

# PyTorch's threads spin while they wait for each other. On a machine that has anything else to do they then wait for a thread
# that is not running: with one other busy process, training was measured at a fifth of its speed. Read when OpenMP is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def die_with_parent() -> None:
    """On Linux, ask for SIGTERM when the parent (dvc) dies: an orphaned trainer would write beside the next one."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)


# Here and not in main(): a dvc that is killed while its stage still imports must not leave it running either.
if "DVC_STAGE" in os.environ:
    die_with_parent()
