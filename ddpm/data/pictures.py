"""Pictures that are read when they are asked for: from a folder, an archive, or the rows of a table."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm.data.decode import Unreadable, decode
from ddpm.data.listing import Listing, Picture
from ddpm.files import InputError

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

    listing: Listing
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
            raise InputError(f"{shown}: cannot be read as an image ({error}); repair or remove it") from None

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
