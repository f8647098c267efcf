"""Asks Git which commit is checked out, and whether files differ from it."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ddpm.core.files import InputError
from ddpm.experiments.recipe import RECORDS, RESULTS_FILE

# Files that may differ from the commit, because recording writes them.
WRITTEN = (f"{RECORDS.as_posix()}/", RESULTS_FILE.as_posix())
# Folders in which an untracked file could be part of the run.
CODE = ("ddpm/", "stages/")
MAX_NAMED = 3
# What to do without a repository; DVC has the same needs.
CHECKOUT = "run in a checkout of the project; `git init`, `git add -A` and `git commit -m start` make one of an unpacked ZIP"


def git(*arguments: str) -> str:
    """Returns the output of a Git command. Raises InputError with the reason that Git prints if it fails."""
    try:
        process = subprocess.run(["git", *arguments], capture_output=True, text=True, encoding="utf-8", check=False)
    except OSError as error:
        raise InputError(f"cannot be run ({error.strerror}); install it", key="git") from None
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[0]
        raise InputError(f"{reason.removeprefix('fatal: ')}; {CHECKOUT}", key=f"git {arguments[0]}")
    return process.stdout


def has_git() -> bool:
    """Returns whether the current folder is the root of a Git checkout."""
    return Path(".git").exists() and shutil.which("git") is not None


def is_committed(folder: Path) -> bool:
    """Returns whether the last commit has all files of a folder as they are."""
    try:
        return bool(git("ls-files", "--", str(folder))) and not git("status", "--porcelain", "--", str(folder))
    except InputError:  # no Git, no checkout, or a folder outside of it
        return False


def check_clean() -> str:
    """Returns the commit that is checked out. Raises InputError if files differ from it: a record must be reproducible."""
    lines = git("status", "--porcelain", "--untracked-files=all", "--no-renames").splitlines()
    paths = [(line[3:].strip('"'), line.startswith("??")) for line in lines]
    changed = [path for path, new in paths if path.startswith(CODE if new else "") and not path.startswith(WRITTEN)]
    if changed:
        verb = "are" if len(changed) > 1 else "is"
        message = f"{first_of(changed)} {verb} not committed; commit or stash, so that the record can be reproduced"
        raise InputError(message, key="record")
    return git("rev-parse", "HEAD").strip()


def first_of(names: Sequence[str]) -> str:
    """Returns the first names, and the number of the others."""
    return ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")
