"""Where unfinished work is kept, so that a killed stage goes on: outside DVC, which deletes a stage's outputs before it runs."""

import os
import re
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from ddpm.core.files import InputError


def scratch_root() -> Path:
    """DDPM_SCRATCH, or .scratch in the main checkout: --temp and queue runs work elsewhere and find their state there too."""
    if root := os.environ.get("DDPM_SCRATCH"):
        return Path(root).expanduser()
    return Path(os.environ.get("DVC_ROOT", ".")) / ".scratch"


def hold(folder: Path, running: str) -> FileLock:
    """Make a folder for the state of one piece of work, and take its lock, which is to be released at the end.

    Raises InputError if another process holds it (`running` says what that is), or if nothing can be written there.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder, not in it: who removes a folder with the lock in it lets two others in.
        lock = FileLock(folder.with_suffix(".lock"))
        lock.acquire(timeout=0)
        folder.mkdir(exist_ok=True)
    except Timeout:
        raise InputError(f"{running} is running; wait for it, or stop it", key=folder) from None
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror}); set DDPM_SCRATCH to another folder", key=folder) from None
    return lock


def dvc_forces() -> bool:
    """Whether the dvc that runs this stage was started with -f: whoever says so wants the stage to start afresh."""
    try:
        commands = [process.cmdline() for process in psutil.Process().parents()]
    except psutil.Error:
        return False
    return any(is_forced(command) for command in commands)


def is_forced(command: list[str]) -> bool:
    """Whether a command line is `dvc repro` or `dvc exp run` with -f, --force, or -f among other short options without value."""
    starts = [i for i, word in enumerate(command[:4]) if Path(word).name in ("dvc", "dvc.exe")]
    if not starts or not {"repro", "run"} & set(command[starts[0] + 1 :]):
        return False
    return any(word == "--force" or re.fullmatch(r"-[hqvismpPRk]*f[hqvismpPRk]*", word) for word in command[starts[0] + 1 :])
