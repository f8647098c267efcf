"""One script per stage, run as `python -m stages.NAME`.

This file runs before a stage imports anything slow: a dvc that is killed during those seconds must not leave a trainer either.
"""

import ctypes
import os
import signal
import sys


def die_with_parent() -> None:
    """On Linux, ask for SIGTERM when the parent (dvc) dies: an orphaned trainer would write beside the next one."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)


if "DVC_STAGE" in os.environ:
    die_with_parent()
