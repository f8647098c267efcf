"""Archives as folders of pictures: their names made safe, their folders known, their members read where they are.

Nothing is ever unpacked, so no name can lead out of anywhere; members whose names try to are left alone all the same, as are
links, devices and sparse files, and one line says so.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ddpm.data.decode import EXTENSIONS
from ddpm.data.listing import Entry, Listing
from ddpm.data.pictures import Store, at_random
from ddpm.data.tars import list_tar, read_tar, stream_tar
from ddpm.data.zips import archive_start, list_zip, read_zip

OUTSIDE = re.compile(r"[/\\]|[A-Za-z]:|(.*/)?\.\.(/|$)")
DEPTH = 3  # of the folders that matter: a common one, train or test, the class
SHOWN = 3


class Archive(NamedTuple):
    """How a kind of archive is listed, each member with the reason to leave it alone or "", and how its pictures are read."""

    listed: Callable[[Path], Iterator[tuple[Entry, str]]]
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


def list_archive(path: Path, listing: Listing) -> Tree:
    """Add all pictures of an archive; returns its folders. Raises InputError if it is damaged."""
    tree, left = Tree(), []

    def pictures() -> Iterator[Entry]:
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
