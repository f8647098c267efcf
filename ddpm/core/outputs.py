"""Checks of the files and folders that a command is to write, before the work."""

import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from ddpm.core.files import InputError, writing


def check_writable(path: Path) -> None:
    """Raises InputError, with the key `out`, if the nearest existing folder above `path` cannot be written to."""
    with writing(path):
        above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"{path}: {above.name} is a file, not a folder; give another name", key="out")
    if not os.access(above, os.W_OK):
        raise InputError(f"no permission to write to {above}; give another name, or change its rights", key="out")


def check_name(path: Path, advice: str = "; give a name") -> None:
    """Raises InputError, with the key `out`, for a path without a name, standard output, a device, FIFO or socket."""
    if "\0" in str(path) or not path.name or path.name.startswith("."):
        raise InputError(f"{str(path)!r} is no name of a file or folder{advice}", key="out")
    with writing(path):
        is_special = path.exists() and not (path.is_file() or path.is_dir())
    if str(path) == "-" or str(path).startswith(("/dev/std", "/dev/fd/")) or is_special:
        raise InputError(f"{path} is no file; results are not written to standard output or devices, so name a file", key="out")


def check_out(path: Path, suffixes: Iterable[str]) -> str:
    """Returns the suffix of --out, one of `suffixes`; "" is a folder. Raises InputError if the path cannot be written."""
    suffix, suffixes = path.suffix.lower(), list(suffixes)
    valid = " or ".join(kind or "none, for a folder" for kind in suffixes)
    check_name(path, f"; give one that ends in {valid}")
    if suffix not in suffixes:
        raise InputError(f"{str(path)!r} ends in {suffix or 'no suffix'!r}; valid: {valid}", key="out")
    with writing(path):
        if path.is_dir():
            raise InputError(f"{path} is an existing folder; give another name, or remove it", key="out")
        if not suffix and path.exists():
            raise InputError(f"{path} is an existing file; give another name, or a suffix", key="out")
    check_writable(path)
    return suffix


def check_folder(path: Path, files: Collection[str], is_ours: Callable[[Path], bool], kind: str) -> None:
    """Raises InputError, with the key `out`, if a command cannot write a folder, or would replace one of another kind.

    path: the folder to write; an existing one must be empty or an earlier output of the same command.
    files: the names that such an output may hold.
    is_ours: returns whether this command wrote an existing folder.
    kind: the name of the output in messages.
    """
    check_name(path)
    with writing(path):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise InputError(f"{path} is a file or a link that is there already; give another name, or remove it", key="out")
        if path.is_dir():
            names = {entry.name for entry in path.iterdir()}
            if names and not (names <= set(files) and is_ours(path)):
                raise InputError(f"{path} is there already and is no {kind}; give another name, or remove it", key="out")
    check_writable(path)
