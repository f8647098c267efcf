"""TAR archives read in place, plain or compressed: what is in one, and the bytes of its members.

A compressed one can be read from its beginning to its end only, so its pictures are asked for in the order of their places.


ZIP archives read in place: what is in one, and the bytes of a member (PKWARE's APPNOTE 6.3.10).

Python's zipfile keeps an object of about a kilobyte for every member; here a member is the position of its directory entry.


Archives as folders of pictures: their names made safe, their folders known, their members read where they are.

Nothing is ever unpacked, so no name can lead out of anywhere; members whose names try to are left alone all the same, as are
links, devices and sparse files, and one line says so.
"""

import bz2
import gzip
import lzma
import re
import stat
import struct
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ddpm.core.files import InputError
from ddpm.core.progress import Progress
from ddpm.datasets.image_io import EXTENSIONS, Unreadable
from ddpm.datasets.index import STAMPS, FoundFile, ImageIndex, Load, Picture, Store, at_random, bounded, read_part

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


def list_tar(path: Path, compression: str | None) -> Iterator[tuple[FoundFile, str]]:
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
                    yield FoundFile(name, member.offset_data, member.size, stamp), "" if regular else "no regular file"
                    progress.advance(raw.tell() // MEGABYTE - progress.count)
            # tarfile takes anything that is no header for the end.
            if watched.last != bytes(BLOCK):
                raise ValueError("it ends too early")
            while watched.read(MEGABYTE):  # to the checksum of the compression
                pass
            progress.advance(size - progress.count)
        except DAMAGED as error:
            raise InputError(f"is damaged, or no TAR archive ({_reason(error)}); replace it", key=path) from None


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
            raise InputError(f"is damaged ({_reason(error)}); replace it", key=path) from None


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
MEMBER = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
MAX_COMMENT = 0xFFFF
IN_EXTRA = 0xFFFFFFFF  # of a size or an offset that needs 64 bits
ZIP64, ENCRYPTED, UTF8 = 1, 0x1, 0x800
STORED, DEFLATED = 0, 8


class Member(NamedTuple):
    """A directory entry: the name, Unix file type (0 if unknown), flags, method, checksum, sizes, and where the member begins."""

    name: str
    kind: int
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int


def list_zip(path: Path) -> Iterator[tuple[FoundFile, str]]:
    """All members, folders with a "/" at their end, each with the reason why it can be no picture's file, or "".

    Raises InputError for a damaged archive.
    """
    with open(path, "rb") as file:
        try:
            directory, count, start = _directory(file)
            file.seek(directory)
            for _ in range(count):
                place = file.tell()
                member = _member(file, start)
                reason = "" if member.kind in (0, stat.S_IFREG, stat.S_IFDIR) else "no regular file"
                yield FoundFile(member.name, place, member.size, member.crc + 1), reason
        except (struct.error, ValueError) as error:
            raise InputError(f"is damaged, or no ZIP archive ({error}); replace it", key=path) from None


def archive_start(path: Path) -> int:
    """Where the archive begins in the file: what its offsets count from. Raises InputError for a damaged archive."""
    with open(path, "rb") as file:
        try:
            return _directory(file)[2]
        except (struct.error, ValueError) as error:
            raise InputError(f"is damaged, or no ZIP archive ({error}); replace it", key=path) from None


def read_zip(path: Path, picture: Picture, start: int) -> BytesIO:
    """The bytes of a listed member of an archive that begins there in the file. Raises Unreadable."""
    bounded(picture)
    try:
        with open(path, "rb") as file:
            file.seek(picture.place)
            member = _member(file, start)
        head = LOCAL.unpack(read_part(path, member.offset, LOCAL.size))
    except (struct.error, ValueError) as error:
        raise Unreadable(f"its archive is damaged: {error}") from None
    if member.flags & ENCRYPTED:
        raise Unreadable("it is encrypted")
    if member.method not in (STORED, DEFLATED):
        raise Unreadable(f"it is compressed by method {member.method}; only 8 (deflate) can be read")
    # No more is taken than the size that was listed, whatever the compressed bytes hold.
    packed = read_part(path, member.offset + LOCAL.size + head[-2] + head[-1], min(member.packed, 2 * picture.length + 1024))
    try:
        data = packed if member.method == STORED else zlib.decompressobj(-15).decompress(packed, picture.length + 1)
    except zlib.error as error:
        raise Unreadable(f"its archive is damaged: {error}") from None
    if len(data) != picture.length or zlib.crc32(data) != member.crc:
        raise Unreadable("its archive is damaged: it does not match its checksum")
    return BytesIO(data)


def _directory(file: BinaryIO) -> tuple[int, int, int]:
    """Where the directory begins, how many members it has, and where the archive begins in the file."""
    size = file.seek(0, 2)
    tail = max(0, size - END.size - MAX_COMMENT)
    file.seek(tail)
    data = file.read()
    at = data.rfind(b"PK\5\6")
    if at < 0:
        raise ValueError("its end is missing")
    _, _, _, _, count, length, offset, _ = END.unpack_from(data, at)
    end = tail + at
    # The larger end stands before a pointer of 20 bytes to it, which stands before the smaller one.
    before = end - 20 - END64.size
    if before >= 0:
        file.seek(before)
        large = END64.unpack(file.read(END64.size))
        if large[0] == b"PK\6\6" and file.read(4) == b"PK\6\7":
            count, length, offset, end = *large[-3:], before
    start = end - length
    if start < offset:
        raise ValueError("its directory is missing")
    return start, count, start - offset


def _member(file: BinaryIO, archive: int) -> Member:
    """The directory entry that begins here."""
    fields = MEMBER.unpack(file.read(MEMBER.size))
    signature, _, _, flags, method, _, _, crc, packed, size, named, extra, comment, _, _, attributes, offset = fields
    if signature != b"PK\1\2":
        raise ValueError("its directory ends too early")
    name = file.read(named).decode("utf-8" if flags & UTF8 else "cp437", "surrogateescape")
    values = _large(file.read(extra), [size, packed, offset])
    file.seek(comment, 1)
    size, packed, offset = values
    return Member(name, stat.S_IFMT(attributes >> 16), flags, method, crc, packed, size, offset + archive)


def _large(extra: bytes, values: list[int]) -> list[int]:
    """The values, those that need 64 bits from the extra field."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == ZIP64:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, 4))
            return [next(wide, value) if value == IN_EXTRA else value for value in values]
        extra = extra[4 + length :]
    return values


OUTSIDE = re.compile(r"[/\\]|[A-Za-z]:|(.*/)?\.\.(/|$)")
DEPTH = 3  # of the folders that matter: a common one, train or test, the class
SHOWN = 3


class Archive(NamedTuple):
    """How a kind of archive is listed, each member with the reason to leave it alone or "", and how its pictures are read."""

    listed: Callable[[Path], Iterator[tuple[FoundFile, str]]]
    store: Callable[[Path], Store]


def _compressed(compression: str) -> Archive:
    def store(path: Path) -> Store:
        return Store(path, partial(stream_tar, path, compression), in_place_order=True)

    return Archive(partial(list_tar, compression=compression), store)


def _zip_store(path: Path) -> Store:
    return at_random(path, partial(read_zip, start=archive_start(path)))


ARCHIVES: dict[str, Archive] = {
    ".zip": Archive(list_zip, _zip_store),
    ".tar": Archive(partial(list_tar, compression=None), lambda path: at_random(path, read_tar)),
    **{name: _compressed(".gz") for name in (".tar.gz", ".tgz")},
    **{name: _compressed(".xz") for name in (".tar.xz", ".txz")},
    **{name: _compressed(".bz2") for name in (".tar.bz2", ".tbz2")},
}


class Tree:
    """The outermost folders of an archive, and which of them hold pictures themselves; paths end with "/", the root is ""."""

    def __init__(self):
        self.below: dict[str, set[str]] = defaultdict(set)
        self.holding: set[str] = set()

    def add(self, folders: list[str], picture: bool) -> None:
        for depth in range(min(len(folders), DEPTH)):
            self.below["".join(f"{name}/" for name in folders[:depth])].add(folders[depth])
        if picture and len(folders) < DEPTH:
            self.holding.add("".join(f"{name}/" for name in folders))

    def __call__(self, folder: str) -> list[str]:
        """Names of the folders in one."""
        return sorted(self.below.get(folder, ()))


def kind_of(path: Path) -> Archive | None:
    """The kind of an archive by the end of its name, None for any other."""
    return next((kind for end, kind in ARCHIVES.items() if path.name.lower().endswith(end)), None)


def stamp_of(path: Path) -> str:
    """What changes when a file does."""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def list_archive(path: Path, listing: ImageIndex) -> Tree:
    """Add all pictures of an archive; returns its folders. Raises InputError if it is damaged."""
    tree, left = Tree(), []

    def pictures() -> Iterator[FoundFile]:
        for entry, reason in kind_of(path).listed(path):
            parts = [part for part in entry.name.split("/") if part not in ("", ".")]
            is_picture = is_picture_name(parts[-1] if parts else "") and not entry.name.endswith("/")
            reason = "leads out of the archive" if OUTSIDE.match(entry.name) else reason
            if not reason:
                tree.add(parts if entry.name.endswith("/") else parts[:-1], is_picture)
                if is_picture:
                    yield entry._replace(name="/".join(parts))
            elif is_picture:
                left.append(f"{entry.name} ({reason})" if len(left) < SHOWN else "")

    listing.add(pictures())
    if left:
        more = f" and {len(left) - SHOWN:,} others" if len(left) > SHOWN else ""
        print(ascii(f"{path}: left alone: {', '.join(left[:SHOWN])}{more}")[1:-1], flush=True)
    return tree


def is_picture_name(name: str) -> bool:
    """Whether a file is a picture by its name; "._" begins what macOS lays beside the files of an archive."""
    return Path(name).suffix.lower() in EXTENSIONS and not name.startswith("._")
