"""Names and locks the folders for state from which a killed stage resumes, outside DVC, which deletes outputs before a stage."""

import os
from pathlib import Path

from filelock import FileLock, Timeout

from ddpm.core.files import InputError
from ddpm.core.paths import folder_of


def scratch_root() -> Path:
    """Returns $DDPM_SCRATCH, or .scratch."""
    return folder_of("DDPM_SCRATCH", ".scratch")


def fresh_start() -> bool:
    """Returns whether a stage must discard saved state instead of resuming: whether $DDPM_FRESH is set, to other than 0."""
    return os.environ.get("DDPM_FRESH", "0") not in ("", "0")


def hold(folder: Path, running: str) -> FileLock:
    """Makes the folder for the state of one piece of work and returns its lock, held; the caller releases it.

    running: the name of the work in the message.
    Raises InputError if another process holds the lock, or if nothing can be written there.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Next to the folder, not in it: the folder is removed while the lock is held.
        lock = FileLock(folder.with_suffix(".lock"))
        lock.acquire(timeout=0)
        folder.mkdir(exist_ok=True)
    except Timeout:
        raise InputError(f"{running} is running; wait for it, or stop it", key=folder) from None
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror}); set DDPM_SCRATCH to another folder", key=folder) from None
    return lock
