"""Lists the pictures of a data set: their order, splits and labels, and how the bytes of each are read."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm.core.files import printable
from ddpm.datasets.image_io import EXTENSIONS, Unreadable

MAX_STAMP = (1 << 62) - 1  # fits in int64
MAX_BYTES = 256 << 20  # more than any encoded picture; larger files are not read into memory
MAX_NAMED = 3  # files in a message


class FoundFile(NamedTuple):
    """A picture in a folder, an archive or a table.

    name: its path, with "/" between folders.
    offset: where its bytes begin, or its number in an archive or a table.
    size: the number of its bytes.
    stamp: a positive integer that changes when the picture does.
    """

    name: str
    offset: int
    size: int
    stamp: int


class Assignment(NamedTuple):
    """The place of a picture in the data set.

    name: as in FoundFile.
    part: 0 train, 1 test; 0 for all pictures if they are to be split.
    label: the number of its class.
    key: sorts the pictures of a part.
    """

    name: str
    part: int
    label: int
    key: bytes


class Picture(NamedTuple):
    """A picture of a split. split: 0 train, 1 test; position: its row in the split; the others as in FoundFile."""

    split: int
    position: int
    label: int
    name: str
    offset: int
    size: int
    stamp: int


def is_picture_name(name: str) -> bool:
    """Returns whether a file is a picture by its name. macOS begins the names of its resource forks with "._"."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("._")


def is_hidden(folder: str) -> bool:
    """Returns whether a folder is none of the data set by its name: .ipynb_checkpoints, or what systems lay beside files."""
    return folder.startswith(".") or folder in ("__MACOSX", "@eaDir", "$RECYCLE.BIN")


def some_of(names: Sequence[str]) -> str:
    """Returns the first names of a list for a message, and the number of the others."""
    more = f" and {len(names) - MAX_NAMED:,} others" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}"


class ImageIndex:
    """The pictures of both splits in order: `add` the files, then `assign` them once.

    table: the name of a file that is no picture, and no skipped file either.
    skipped: the number of files that are no pictures by their names, and the first of them, by the end of the name.
    splits: the pictures of train and test.
    digest: a hash of the names, labels and splits.
    """

    def __init__(self, table: str = ""):
        self.table = table
        self.files: dict[str, FoundFile] = {}
        self.skipped: dict[str, tuple[int, str]] = {}
        self.splits: tuple[list[Picture], list[Picture]] = ([], [])
        self.digest = ""

    def add(self, files: Iterable[FoundFile]) -> None:
        """Adds files. Of two with one name the later one counts, as when an archive is unpacked."""
        self.files.update((file.name, file) for file in files)

    def add_pictures(self, files: Iterable[FoundFile]) -> None:
        """Adds those of the files that are pictures by their names, and counts the others, but hidden ones."""
        for file in files:
            name = file.name.rpartition("/")[2]
            ending = os.path.splitext(name)[1].lower()
            if is_picture_name(name):
                self.files[file.name] = file
            elif not name.startswith(".") and file.name != self.table:
                count, first = self.skipped.get(ending, (0, file.name))
                self.skipped[ending] = (count + 1, first)

    def assign(self, assignments: Iterable[Assignment], held_out: Callable[[np.ndarray], np.ndarray] | None = None) -> str | None:
        """Sorts the assigned files into `splits`, and drops all others.

        held_out: maps the labels int64 (N,) of a single part to a mask bool (N,) of the test split.
        Returns the first name, if any, that is assigned but was not added; then nothing is sorted.
        """
        rows = sorted({row.name: row for row in assignments}.values(), key=lambda row: (row.part, row.key))
        if missing := next((row.name for row in rows if row.name not in self.files), None):
            return missing
        parts = held_out(np.array([row.label for row in rows], np.int64)) if held_out else [row.part for row in rows]
        digest = hashlib.sha256()
        for row, part in zip(rows, map(int, parts), strict=True):
            digest.update(b"%d %d %s\0" % (part, row.label, os.fsencode(row.name)))
            split = self.splits[part]
            split.append(Picture(part, len(split), row.label, *self.files[row.name]))
        self.files, self.digest = {}, digest.hexdigest()
        return None

    @property
    def counts(self) -> tuple[int, int]:
        """The number of pictures in each split."""
        return len(self.splits[0]), len(self.splits[1])

    def labels(self, split: int) -> np.ndarray:
        """Returns the labels int64 (N,) of a split."""
        return np.fromiter((picture.label for picture in self.splits[split]), np.int64, self.counts[split])

    def pictures(self, by_offset: bool = False) -> Iterable[Picture]:
        """Returns the pictures of train and test in order, or all of them sorted by their offset."""
        pictures = self.splits[0] + self.splits[1]
        return sorted(pictures, key=lambda picture: picture.offset) if by_offset else pictures


# Returns the file of one picture, in any thread. Raises Unreadable.
Load = Callable[[], Path | BytesIO]


class Store(NamedTuple):
    """Reads the files of listed pictures.

    where: the folder or archive, which begins the names in messages.
    fetch: maps pictures to pairs of a picture and its Load, in order.
    by_offset: fetch needs the pictures in the order of their offsets, because it reads from beginning to end.
    """

    where: Path
    fetch: Callable[[Iterable[Picture]], Iterator[tuple[Picture, Load]]]
    by_offset: bool = False

    def shown(self, picture: Picture) -> str:
        """Returns the path for a message of one line, with unprintable characters escaped."""
        return printable(str(self.where / picture.name))


class Files(NamedTuple):
    """The pictures of a data set.

    index: the list of them.
    store: reads them.
    stamp: changes when the archive does; "" for a folder.
    """

    index: ImageIndex
    store: Store
    stamp: str = ""


def random_access(where: Path, load: Callable[[Picture], Path | BytesIO]) -> Store:
    """Returns a store that reads each picture by itself, in any order."""
    return Store(where, lambda pictures: ((picture, partial(load, picture)) for picture in pictures))


def on_disk(where: Path) -> Store:
    """Returns a store of files in a folder."""

    def load(picture: Picture) -> Path:
        path = where / picture.name
        try:
            regular = stat.S_ISREG(path.stat().st_mode)
        except OSError as error:
            raise Unreadable(error.strerror) from None
        if not regular:  # reading a FIFO or a device may never end
            raise Unreadable("it is no regular file")
        return path

    return random_access(where, load)


def check_size(size: int) -> None:
    """Raises Unreadable for a picture of more than MAX_BYTES."""
    if size > MAX_BYTES:
        raise Unreadable(f"its {size:,} bytes exceed the limit of {MAX_BYTES:,}")
