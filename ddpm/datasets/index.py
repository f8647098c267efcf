"""Which pictures there are, in which order, and where their bytes lie: a table on disk, since there may be millions of them.

Pictures that are read when they are asked for: from a folder, an archive, or the rows of a table."""

import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm.core.files import InputError
from ddpm.datasets.image_io import Unreadable, decode

MEMORY = 4096  # KiB that SQLite may keep of the table
CHUNK = 1 << 16
# Positive integers that SQLite holds.
STAMPS = (1 << 62) - 1


class FoundFile(NamedTuple):
    """A picture that was found: its path with "/" between folders, where its bytes begin, how many there are, and a positive
    integer that is another one when the picture has changed."""

    name: str
    place: int
    length: int
    stamp: int


class Picture(NamedTuple):
    """A picture of a split (0 train, 1 test), and its position in it; the rest as in Entry."""

    split: int
    position: int
    label: int
    name: str
    place: int
    length: int
    stamp: int


class Assignment(NamedTuple):
    """Where a picture belongs: its part (0 train, 1 test; 0 for all if they are yet to be split), class, and place in the order
    of the part, by these bytes."""

    name: str
    part: int
    label: int
    key: bytes


class ImageIndex:
    """`add` what was found, then `arrange` it; from then on it gives the pictures of both splits in order.

    Raises InputError where the disk has no room for the table.
    """

    def __init__(self):
        # A nameless database is a file that is gone with this process, however it ends.
        self.table = sqlite3.connect("")
        self.counts = (0, 0)
        self.digest = ""
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{MEMORY}"):
            self.table.execute(f"PRAGMA {setting}")
        self.table.execute("CREATE TABLE found (name BLOB PRIMARY KEY, place, length, stamp) WITHOUT ROWID")

    def add(self, entries: Iterable[FoundFile]) -> None:
        """Of two entries of one name the later one counts, as it does when an archive is unpacked."""
        with _room():
            rows = ((os.fsencode(name), *rest) for name, *rest in entries)
            self.table.executemany("INSERT OR REPLACE INTO found VALUES (?, ?, ?, ?)", rows)

    def names(self) -> Iterator[str]:
        """The names of all that was found, in any order."""
        return (os.fsdecode(name) for (name,) in self.table.execute("SELECT name FROM found"))

    def assign(self, wanted: Iterable[Assignment], held_out: Callable[[np.ndarray], np.ndarray] | None = None) -> list[str]:
        """Keep what is wanted, in order; returns some names that are wanted, but were not found, in which case nothing is kept.

        held_out: of labels int64 (N,), which pictures of the one part there is become the test split, bool (N,).
        """
        with _room():
            self.table.execute("CREATE TABLE wanted (name BLOB PRIMARY KEY, part, label, key BLOB) WITHOUT ROWID")
            rows = ((os.fsencode(name), *rest) for name, *rest in wanted)
            self.table.executemany("INSERT OR REPLACE INTO wanted VALUES (?, ?, ?, ?)", rows)
            missing = "SELECT name FROM wanted WHERE name NOT IN (SELECT name FROM found) LIMIT 3"
            if absent := [os.fsdecode(name) for (name,) in self.table.execute(missing)]:
                return absent
            self.table.execute(
                "CREATE TABLE ranked AS SELECT part, label, name, place, length, stamp "
                "FROM wanted JOIN found USING (name) ORDER BY part, key"
            )
            self.table.execute("DROP TABLE wanted")
            self.table.execute("DROP TABLE found")
            self._place(held_out)
            self.table.execute("DROP TABLE ranked")
        return []

    def _place(self, held_out: Callable[[np.ndarray], np.ndarray] | None) -> None:
        """Give every picture its position in its split."""
        self.table.execute(
            "CREATE TABLE pictures (split, position, label, name BLOB, place, length, stamp, PRIMARY KEY (split, position)) "
            "WITHOUT ROWID"
        )
        mask = None
        if held_out:
            ((count,),) = self.table.execute("SELECT COUNT(*) FROM ranked")
            mask = held_out(_mapped(self.table.execute("SELECT label FROM ranked ORDER BY rowid"), count))
        counts, digest = [0, 0], hashlib.sha256()

        def placed() -> Iterator[tuple]:
            for rank, (part, label, name, *rest) in enumerate(self.table.execute("SELECT * FROM ranked ORDER BY rowid")):
                split = part if mask is None else int(mask[rank])
                digest.update(b"%d %d %s\0" % (split, label, name))
                yield split, counts[split], label, name, *rest
                counts[split] += 1

        self.table.executemany("INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?)", placed())
        self.counts, self.digest = tuple(counts), digest.hexdigest()

    def labels(self, split: int) -> np.ndarray:
        """int64 (N,) of a split, on disk."""
        with _room():
            rows = self.table.execute("SELECT label FROM pictures WHERE split = ? ORDER BY position", [split])
            return _mapped(rows, self.counts[split])

    def pictures(self, by_place: bool = False) -> Iterator[Picture]:
        """All of them: the training split in order, then the test split; or in the order in which their bytes lie."""
        order = "place" if by_place else "split, position"
        return map(_picture, self.table.execute(f"SELECT * FROM pictures ORDER BY {order}"))

    def at(self, split: int, position: int) -> Picture:
        """One picture. Raises IndexError if the split has no such position."""
        row = self.table.execute("SELECT * FROM pictures WHERE split = ? AND position = ?", [split, position]).fetchone()
        if row is None:
            raise IndexError(position)
        return _picture(row)


def _picture(row: tuple) -> Picture:
    split, position, label, name, *rest = row
    return Picture(split, position, label, os.fsdecode(name), *rest)


def _mapped(rows: Iterable[tuple[int]], count: int) -> np.ndarray:
    """The one column of these rows, int64 (count,), in a file that is gone with this process, as the table is."""
    values = (value for (value,) in rows)
    with tempfile.TemporaryFile() as file:
        while len(part := np.fromiter(islice(values, CHUNK), np.int64)):
            file.write(part.tobytes())
        file.flush()
        return np.memmap(file, np.int64, "r", shape=(count,)) if count else np.empty(0, np.int64)


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise InputError(
            f"the list of pictures cannot be written ({error}); free some disk space, or set SQLITE_TMPDIR to a folder with more"
        ) from None


# More than any encoded picture; what claims to be larger is not read into memory.
LARGEST = 256 << 20
# Gives the file of one picture, in any thread. Raises Unreadable.
Load = Callable[[], Path | BytesIO]


class Store(NamedTuple):
    """Where listed pictures lie, which begins their names in messages, and how their files are had.

    fetch: of pictures in order, each with the function that gives its file. in_place_order: they must come in the order of
    their places, since what holds them can be read from its beginning to its end only.
    """

    where: Path
    fetch: Callable[[Iterable[Picture]], Iterator[tuple[Picture, Load]]]
    in_place_order: bool = False

    def path(self, picture: Picture) -> Path:
        return self.where / picture.name

    def shown(self, picture: Picture) -> str:
        """The path for a message of one line, whatever characters it holds."""
        path = str(self.path(picture))
        return path if path.isprintable() else ascii(path)


class Files(NamedTuple):
    """All pictures of a data set. mode: "L" or "RGB" converts them, None keeps the channels of each; stamp: of the archive."""

    listing: ImageIndex
    store: Store
    mode: str | None
    stamp: str = ""


class Pictures(Sequence):
    """One split of them (0 train, 1 test) as uint8 (H, W, C) arrays."""

    def __init__(self, files: Files, split: int):
        self.files, self.split = files, split

    def __len__(self) -> int:
        return self.files.listing.counts[self.split]

    def __getitem__(self, index: int) -> np.ndarray:
        picture = self.files.listing.at(self.split, index)
        ((_, load),) = self.files.store.fetch([picture])
        try:
            return decode(load(), self.files.mode)
        except Unreadable as error:
            shown = self.files.store.shown(picture)
            raise InputError(f"cannot be read as an image ({error}); repair or remove it", key=shown) from None

    @property
    def paths(self) -> list[Path]:
        """The name of every picture, in order."""
        listed = self.files.listing.pictures()
        return [self.files.store.path(picture) for picture in listed if picture.split == self.split]


def at_random(where: Path, load: Callable[[Path, Picture], Path | BytesIO]) -> Store:
    """A store that gives each picture by itself, in any order."""
    return Store(where, lambda pictures: ((picture, partial(load, where, picture)) for picture in pictures))


def on_disk(where: Path) -> Store:
    """A store of files in a folder."""
    return at_random(where, lambda folder, picture: folder / picture.name)


def bounded(picture: Picture) -> None:
    """Raises Unreadable for a picture that claims to be larger than any is."""
    if picture.length > LARGEST:
        raise Unreadable(f"its {picture.length:,} bytes are more than the {LARGEST:,} that are read of a picture")


def read_part(path: str | os.PathLike, place: int, length: int) -> bytes:
    """So many bytes of a file, fewer at its end."""
    with open(path, "rb") as file:
        file.seek(place)
        return file.read(length)
