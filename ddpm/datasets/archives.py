"""Reads the pictures of ZIP and TAR archives in place.

Nothing is unpacked. Members whose names lead out of the archive are skipped and named in one line, as are links, devices and
sparse files.
"""

import bz2
import gzip
import lzma
import math
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ddpm.core.files import InputError, first_line, print_line
from ddpm.core.progress import Progress
from ddpm.datasets.image_io import EXTENSIONS, Unreadable
from ddpm.datasets.index import (
    MAX_STAMP,
    FoundFile,
    ImageIndex,
    Load,
    Picture,
    Store,
    check_size,
    is_hidden,
    random_access,
    some_of,
)

OPENERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
MEGABYTE = 1 << 20
OUTSIDE = re.compile(r"[/\\]|[A-Za-z]:|(.*/)?\.\.(/|$)")
NOT_REGULAR = "no regular file"
DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, lzma.LZMAError, zlib.error, struct.error, ValueError, OverflowError,
    NotImplementedError,
)  # fmt: skip

# Yields every member, folders with a "/" at the end of the name, each with the reason to skip it, or "".
Members = Iterator[tuple[FoundFile, str]]


class Archive(NamedTuple):
    """A kind of archive.

    members: lists an archive. Raises one of DAMAGED.
    store: returns the store that reads its pictures.
    """

    members: Callable[[Path], Members]
    store: Callable[[Path], Store]


def zip_members(path: Path) -> Members:
    """Yields the members of a ZIP archive; the offset of each is its number in the directory.

    Some programs of Windows separate folders by backslashes: so they are read where no name holds a "/".
    """
    with zipfile.ZipFile(path) as archive:
        backslashes = not any("/" in name for name in archive.namelist())
        for number, member in enumerate(archive.infolist()):
            regular = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
            name = member.filename.replace("\\", "/") if backslashes else member.filename
            yield FoundFile(name, number, member.file_size, member.CRC + 1), "" if regular else NOT_REGULAR


def zip_store(path: Path) -> Store:
    """Returns a store that keeps the archive open; zipfile locks it for each read, so threads may share it."""
    archive = zipfile.ZipFile(path)
    members = archive.infolist()

    def load(picture: Picture) -> BytesIO:
        check_size(picture.size)
        member = members[picture.offset]
        if member.flag_bits & 1:
            raise Unreadable("it is encrypted")
        # zipfile inflates other methods without a limit.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Unreadable(f"it is compressed by method {member.compress_type}; only 8 (deflate) can be read")
        try:
            with archive.open(member) as file:
                data = file.read(picture.size + 1)
        except DAMAGED as error:
            raise Unreadable(f"its archive is damaged: {first_line(error)}") from None
        if len(data) != picture.size:
            raise Unreadable(f"its archive is damaged: {len(data):,} bytes instead of {picture.size:,}")
        return BytesIO(data)

    return random_access(path, load)


class _StrictTarInfo(tarfile.TarInfo):
    """A header of a TAR archive; tarfile itself takes a damaged header for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # a block of zeros: the end
            raise
        except tarfile.HeaderError as error:
            raise ValueError(f"it ends too early: {first_line(error)}") from None


def tar_members(path: Path, compression: str | None) -> Members:
    """Yields the members of a TAR archive; the offset of each is that of its bytes in the uncompressed archive."""
    total = path.stat().st_size // MEGABYTE + 1
    with open(path, "rb") as raw, Progress("listing", total, "MB") as progress:
        file = OPENERS[compression](raw) if compression else raw
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_StrictTarInfo) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # tarfile keeps them all, at a kilobyte each
                if member.size < 0:  # which would lead back to an earlier member, for ever
                    raise ValueError(f"the size of {member.name} is {member.size}")
                mtime = int(member.mtime) if math.isfinite(member.mtime) else 0
                stamp = (mtime * 31 + member.size) % MAX_STAMP + 1
                regular = member.isdir() or (member.isreg() and not member.issparse())
                name = f"{member.name}/" if member.isdir() else member.name
                yield FoundFile(name, member.offset_data, member.size, stamp), "" if regular else NOT_REGULAR
                progress.advance(raw.tell() // MEGABYTE - progress.count)
        while file.read(MEGABYTE):  # up to the checksum of the compression
            pass
        progress.advance(total - progress.count)


def tar_store(path: Path) -> Store:
    """Returns a store of an uncompressed TAR archive."""

    def load(picture: Picture) -> BytesIO:
        check_size(picture.size)
        with open(path, "rb") as file:
            file.seek(picture.offset)
            return BytesIO(file.read(picture.size))

    return random_access(path, load)


def compressed_tar_store(path: Path, compression: str) -> Store:
    """Returns a store of a compressed TAR archive, which is read from beginning to end."""

    def fetch(pictures: Iterable[Picture]) -> Iterator[tuple[Picture, Load]]:
        with open(path, "rb") as raw:
            try:
                file = OPENERS[compression](raw)
                for picture in pictures:
                    try:
                        check_size(picture.size)
                    except Unreadable as error:
                        yield picture, partial(_raise, error)
                        continue
                    file.seek(picture.offset)
                    yield picture, partial(BytesIO, file.read(picture.size))
            except DAMAGED as error:
                raise InputError(f"is damaged ({first_line(error)}); replace it", key=path) from None

    return Store(path, fetch, by_offset=True)


def _raise(error: Exception) -> BytesIO:
    raise error


TAR_ENDS = {".tar.gz": ".gz", ".tgz": ".gz", ".tar.xz": ".xz", ".txz": ".xz", ".tar.bz2": ".bz2", ".tbz2": ".bz2"}
ARCHIVES: dict[str, Archive] = {
    ".zip": Archive(zip_members, zip_store),
    ".tar": Archive(partial(tar_members, compression=None), tar_store),
    **{
        end: Archive(partial(tar_members, compression=kind), partial(compressed_tar_store, compression=kind))
        for end, kind in TAR_ENDS.items()
    },
}


def kind_of(path: Path) -> Archive | None:
    """Returns the kind of an archive by the end of its name, None for another file."""
    return next((kind for end, kind in ARCHIVES.items() if path.name.lower().endswith(end)), None)


def stamp_of(path: Path) -> str:
    """Returns the size and time of a file, which change when the file does."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def list_archive(path: Path, index: ImageIndex) -> set[str]:
    """Adds all pictures of an archive to the index. Returns its folders, each path with a "/" at the end.

    Raises InputError for a damaged archive.
    """
    folders, skipped = set(), []

    def files() -> Iterator[FoundFile]:
        for member, reason in kind_of(path).members(path):
            parts = [part for part in member.name.split("/") if part not in ("", ".")]
            is_folder = member.name.endswith("/")
            is_file = not is_folder and bool(parts)
            if OUTSIDE.match(member.name):
                reason = "leads out of the archive"
            elif any(map(is_hidden, parts if is_folder else parts[:-1])):
                continue
            if not reason:
                above = parts if is_folder else parts[:-1]
                folders.update("".join(f"{part}/" for part in above[:end]) for end in range(1, len(above) + 1))
                if is_file:
                    yield member._replace(name="/".join(parts))
            elif is_file and Path(parts[-1]).suffix.lower() in EXTENSIONS:
                skipped.append(f"{member.name} ({reason})")

    try:
        index.add_pictures(files())
    except DAMAGED as error:
        kind = "ZIP" if path.name.lower().endswith(".zip") else "TAR"
        raise InputError(f"is damaged, or no {kind} archive ({first_line(error)}); replace it", key=path) from None
    if skipped:
        print_line(f"{path}: skipped: {some_of(skipped)}")
    return folders


def read_text(path: Path, name: str) -> str | None:
    """Returns a text in UTF-8 of a folder or an archive, None if it has no file of that name.

    Raises InputError for a text that cannot be read.
    """
    try:
        if path.is_dir():
            return (path / name).read_bytes().decode("utf-8-sig") if (path / name).is_file() else None
        kind = kind_of(path)
        found = next((file for file, reason in kind.members(path) if file.name.removeprefix("./") == name and not reason), None)
        if found is None:
            return None
        ((_, load),) = kind.store(path).fetch([Picture(0, 0, 0, *found)])
        return load().getvalue().decode("utf-8-sig")
    except (*DAMAGED, Unreadable) as error:  # of a text in another encoding too
        raise InputError(f"cannot be read ({first_line(error)}); replace it by a text in UTF-8", key=path / name) from None
