"""A folder that is written whole or not at all, and replaces nothing but its like."""

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpm.app.outputs import check_above
from ddpm.files import InputError, writing


def check_folder(path: Path, files: Collection[str], ours: Callable[[Path], bool], what: str) -> None:
    """Raises InputError, before any work, for a folder that cannot be written, or that is there and no earlier one of its kind.

    files: the names that such a folder holds, at most; ours: whether one was written by us; what: its name in the message.
    """
    if "\0" in str(path) or not path.name or path.name.startswith("."):
        raise InputError(f"out: {str(path)!r} is no name of a folder; give one")
    with writing(path):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise InputError(f"out: {path} is a file or a link that is there already; give another name, or remove it")
        if path.is_dir():
            found = {entry.name for entry in path.iterdir()}
            if found and not (found <= set(files) and ours(path)):
                raise InputError(f"out: {path} is there already and is no {what}; give another name, or remove it")
    check_above(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new folder, put in the place of `path` if the block succeeds, removed if not."""
    new, old = (path.with_name(f".{path.name}.partial{os.getpid()}{which}") for which in ("", "-old"))
    try:
        with writing(path):
            new.mkdir(parents=True)
            yield new
            if path.exists():
                # A folder cannot take the place of one that holds files.
                os.replace(path, old)
            os.replace(new, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)
