"""ZIP archives read in place: what is in one, and the bytes of a member (PKWARE's APPNOTE 6.3.10).

Python's zipfile keeps an object of about a kilobyte for every member; here a member is the position of its directory entry.
"""

import stat
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ddpm.data.decode import Unreadable
from ddpm.data.listing import Entry, Picture
from ddpm.data.pictures import bounded, read_part
from ddpm.files import InputError

END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
MEMBER = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
LONGEST_COMMENT = 0xFFFF
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


def list_zip(path: Path) -> Iterator[tuple[Entry, str]]:
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
                yield Entry(member.name, place, member.size, member.crc + 1), reason
        except (struct.error, ValueError) as error:
            raise InputError(f"{path}: is damaged, or no ZIP archive ({error}); replace it") from None


def archive_start(path: Path) -> int:
    """Where the archive begins in the file: what its offsets count from. Raises InputError for a damaged archive."""
    with open(path, "rb") as file:
        try:
            return _directory(file)[2]
        except (struct.error, ValueError) as error:
            raise InputError(f"{path}: is damaged, or no ZIP archive ({error}); replace it") from None


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
    tail = max(0, size - END.size - LONGEST_COMMENT)
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
