"""Writes files and folders atomically, reads JSON and .npz files, hashes files, and defines InputError.

Everything is written to a temporary name in the same folder and renamed, so a reader sees the old content or the new.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

_TEMPORARY = ".partial"

_WRITE_ADVICE = {
    errno.ENOSPC: "no space left on the device: free some and run again",
    errno.EDQUOT: "the disk quota is used up: free some space and run again",
    errno.EFBIG: "the file would exceed the size limit of this process or file system",
    errno.EACCES: "no permission to write there: change the rights of the folder",
    errno.EPERM: "no permission to write there: change the rights of the folder",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",
}

# What NumPy raises for a damaged archive: zlib.error inside an entry, RuntimeError for flags that `write_npz` never sets,
# AttributeError or TypeError, by version, for a bare array.
_DAMAGED = (
    OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, RuntimeError, zlib.error, zipfile.BadZipFile
)  # fmt: skip


def printable(text: str) -> str:
    """Returns text from a file as a terminal may show it: escapes such as \\x1b in place of control characters and line ends.

    Control characters move the cursor, colour or hide text; those of category Cf can reverse it.
    """
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else char.encode("unicode_escape").decode()
        for char in text
    )


def counted(number: int, noun: str) -> str:
    """Returns a number of things in words: "1 image", "1,000 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def print_line(text: str, file: TextIO | None = None) -> None:
    """Prints one line, as `printable`, at once; file: sys.stdout by default."""
    print(printable(text), file=file, flush=True)


class InputError(Exception):
    """A mistake outside the code: a setting, a file or the machine. Its text is one printable line: `where: key: message`.

    message: what is wrong and what to do.
    key: the setting or file that is wrong, such as "train.steps" or a path.
    where: the file that holds the setting.
    """

    def __init__(self, message: str, *, key: str | os.PathLike = "", where: str | os.PathLike = ""):
        self.message, self.key, self.where = message, os.fspath(key), os.fspath(where)
        super().__init__(printable(": ".join(part for part in (self.where, self.key, message) if part)))

    def within(self, where: str | os.PathLike, prefix: str = "") -> "InputError":
        """Returns the same error for a setting of the file `where`; `prefix` is put before the key."""
        return InputError(self.message, key=f"{prefix}{self.key}", where=where)


def first_line(error: Exception) -> str:
    """Returns the first line of an exception's text, or the name of its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turns an OSError of the block into an InputError whose key is `path` and whose message says what to do."""
    try:
        yield
    except OSError as error:
        # NumPy reports a full disk without a number.
        advice = _WRITE_ADVICE.get(error.errno, f"cannot be written ({error.strerror or error}); is there space left?")
        raise InputError(advice, key=path) from error


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path in the same folder; renames it to `path` if the block succeeds, removes it if not.

    Makes the folder. Raises InputError, with the key `path`, when the file cannot be written.
    """
    path = Path(path)
    # The suffix comes last but one: libraries choose a format by the suffix.
    temporary = path.with_name(f".{path.stem}{_TEMPORARY}{os.getpid()}{path.suffix}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _remove_leftovers(path, path.stem)
    finally:
        # It is gone after success, and may not exist if the folder itself could not be written.
        try:
            os.unlink(temporary)
        except OSError:
            pass


def _remove_leftovers(path: Path, stem: str) -> None:
    """Removes what processes that were killed have left of earlier attempts to write `path`."""
    prefix = f".{stem}{_TEMPORARY}"
    for other in [entry for entry in path.parent.iterdir() if entry.name.startswith(prefix)]:
        import psutil

        pid = re.match(r"\d*", other.name.removeprefix(prefix))[0]
        if pid and not psutil.pid_exists(int(pid)):
            shutil.rmtree(other, ignore_errors=True) if other.is_dir() else other.unlink(missing_ok=True)


def remove_partial(folder: str | os.PathLike) -> None:
    """Removes the temporary files that killed processes have left in a folder and in the folders below it."""
    with writing(folder):
        for path in Path(folder).rglob(f".*{_TEMPORARY}*"):
            path.unlink(missing_ok=True)


def remove(path: str | os.PathLike) -> None:
    """Removes a file if it exists. Raises InputError, with the path as key, if it cannot be removed."""
    with writing(path):
        Path(path).unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike, value: object) -> None:
    """Writes indented JSON atomically. Raises InputError for NaN and infinity, which JSON does not have."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        raise InputError(f"a value is NaN or infinite, which must not be recorded: {value}", key=path) from error
    write_text(path, text + "\n")


def remake(made_by: str, again: bool = True) -> str:
    """Returns the advice for a missing or damaged file of the stage `made_by`; "" is no stage of this project."""
    if not made_by:
        return "copy or import the model again"
    return f"make it again with `dvc repro -f {made_by}`" if again else f"make it with `dvc repro {made_by}`"


def check_regular(path: str | os.PathLike) -> None:
    """Raises InputError for a folder, FIFO, socket or device. Reading one of the last three may never end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # opening the file gives the reason
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
        raise InputError(f"is a {kinds.get(stat.S_IFMT(mode), 'device')}, not a file; remove it", key=path)


def read_json(path: str | os.PathLike, made_by: str) -> dict:
    """Reads a JSON object. Raises InputError with the advice of `remake(made_by)` if the file is missing or damaged."""
    check_regular(path)
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"not found; {remake(made_by, again=False)}", key=path) from None
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else first_line(error)
        raise InputError(f"cannot be read ({reason}); {remake(made_by)}", key=path) from None
    if not isinstance(value, dict):
        raise InputError(f"holds no JSON object; {remake(made_by)}", key=path)
    return value


def write_npz(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays as a compressed .npz, atomically. Equal arrays give equal bytes: every entry has the same fixed date."""
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def read_npz(path: str | os.PathLike, made_by: str, needed: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Reads all arrays of an .npz. Raises InputError, naming the stage `made_by`, if it is missing or damaged, or if an array
    of `needed` is not in it."""
    check_regular(path)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise InputError(f"not found; make it with `dvc repro {made_by}`", key=path) from None
    except _DAMAGED as error:
        raise InputError(f"damaged ({first_line(error)}); make it again with `dvc repro -f {made_by}`", key=path) from None
    if missing := sorted(set(needed) - set(arrays)):
        raise InputError(f"holds no array {missing[0]}; make it again with `dvc repro -f {made_by}`", key=path)
    return arrays


def sha256(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_tree(paths: Iterable[str | os.PathLike]) -> str:
    """Returns the SHA-256 over the names and contents of files and folders, without byte-code and Markdown, as in .dvcignore.

    Raises InputError if a path does not exist.
    """
    digest = hashlib.sha256()
    for root in map(Path, paths):
        if not root.exists():
            raise InputError("not found", key=root)
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".pyc", ".md"):
                digest.update(f"{path.as_posix()}\0{sha256(path)}\n".encode())
    return digest.hexdigest()


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields a new folder; puts it in the place of `path` if the block succeeds, removes it if not.

    replace: replace an existing folder, which `check_folder` has accepted; otherwise it is an error.
    Raises InputError, with the key `path`, when the folder cannot be written.
    """
    new, old = (path.with_name(f".{path.name}{_TEMPORARY}{os.getpid()}{suffix}") for suffix in ("", "-old"))
    try:
        with writing(path):
            new.mkdir(parents=True)
            yield new
            if replace and path.exists():
                # A folder cannot be renamed to one that holds files.
                os.replace(path, old)
            os.replace(new, path)
            _remove_leftovers(path, path.name)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)
