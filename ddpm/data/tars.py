"""TAR archives read in place, plain or compressed: what is in one, and the bytes of its members.

A compressed one can be read from its beginning to its end only, so its pictures are asked for in the order of their places.
"""

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from ddpm.data.decode import Unreadable
from ddpm.data.listing import STAMPS, Entry, Picture
from ddpm.data.pictures import Load, bounded, read_part
from ddpm.files import InputError
from ddpm.runtime import Progress

OPENERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
MEGABYTE = 1 << 20
BLOCK = 512
DAMAGED = (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error, ValueError)


class _Watched:
    """A file for tarfile that remembers the last block that was read, by which the end of an archive is known."""

    def __init__(self, file: BinaryIO):
        self.file, self.last = file, b""

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.last = data[-BLOCK:]
        return data

    def seek(self, place: int) -> int:
        return self.file.seek(place)

    def tell(self) -> int:
        return self.file.tell()


def list_tar(path: Path, compression: str | None) -> Iterator[tuple[Entry, str]]:
    """All members, folders with a "/" at their end, each with the reason why it can be no picture's file, or "".

    Raises InputError for a damaged archive.
    """
    size = path.stat().st_size // MEGABYTE + 1
    with open(path, "rb") as raw, Progress("listing", size, "MB") as progress:
        try:
            watched = _Watched(OPENERS[compression](raw) if compression else raw)
            with tarfile.open(fileobj=watched, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    # Or tarfile keeps them all.
                    archive.members.clear()
                    stamp = (int(member.mtime) * 31 + member.size) % STAMPS + 1
                    regular = member.isdir() or (member.isreg() and not member.issparse())
                    name = f"{member.name}/" if member.isdir() else member.name
                    yield Entry(name, member.offset_data, member.size, stamp), "" if regular else "no regular file"
                    progress.advance(raw.tell() // MEGABYTE - progress.count)
            # tarfile takes anything that is no header for the end.
            if watched.last != bytes(BLOCK):
                raise ValueError("it ends too early")
            while watched.read(MEGABYTE):  # to the checksum of the compression
                pass
            progress.advance(size - progress.count)
        except DAMAGED as error:
            raise InputError(f"{path}: is damaged, or no TAR archive ({_reason(error)}); replace it") from None


def read_tar(path: Path, picture: Picture) -> BytesIO:
    """The bytes of a listed member of an archive that is not compressed. Raises Unreadable."""
    bounded(picture)
    return BytesIO(read_part(path, picture.place, picture.length))


def stream_tar(path: Path, compression: str, pictures: Iterable[Picture]) -> Iterator[tuple[Picture, Load]]:
    """Pictures of a compressed archive, in the order of their places. Raises InputError if it is damaged."""

    def load(picture: Picture, data: bytes) -> BytesIO:
        bounded(picture)
        return BytesIO(data)

    with open(path, "rb") as raw:
        try:
            file = OPENERS[compression](raw)
            for picture in pictures:
                file.seek(picture.place)
                try:
                    bounded(picture)
                    data = file.read(picture.length)
                except Unreadable:
                    data = b""
                yield picture, lambda picture=picture, data=data: load(picture, data)
        except DAMAGED as error:
            raise InputError(f"{path}: is damaged ({_reason(error)}); replace it") from None


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
