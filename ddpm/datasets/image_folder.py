"""A folder of class folders as a data set, on disk or inside an archive; its pictures are read when they are asked for."""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm.core.files import InputError
from ddpm.datasets.archives import ARCHIVES, is_picture_name, kind_of, list_archive, stamp_of
from ddpm.datasets.image_io import EXTENSIONS
from ddpm.datasets.index import STAMPS, Assignment, Files, FoundFile, ImageIndex, on_disk

TRAIN_NAMES, TEST_NAMES = ("train",), ("test", "val", "validation")
NO_CLASSES = ("__MACOSX",)  # and hidden ones
# Gives the names of the folders in one; paths end with "/", the root is "".
Folders = Callable[[str], list[str]]


class Layout(NamedTuple):
    """Where the class folders are: in a train and a test folder, or in one whose pictures are yet to be split."""

    roots: tuple[str, ...]
    class_names: list[str]


def read_image_folder(path: Path, mode: str | None, test_share: float) -> tuple[Files, list[str]]:
    """All pictures of a folder or an archive, and the class names, sorted.

    ROOT/train and ROOT/test (or val) hold the class folders if both exist; otherwise ROOT/train or ROOT does, and a stratified
    share of `test_share` becomes the test split. ROOT is the folder, or in an archive the one folder that holds everything.
    Raises InputError for a folder that is missing or empty, for an empty class, and for a damaged archive.
    """
    listing, kind = ImageIndex(), kind_of(path)
    if path.is_dir():
        layout = find_layout(path, lambda folder: _folders(path, folder))
        for root in layout.roots:
            for name in layout.class_names:
                if (path / root / name).is_dir():
                    listing.add(walk(path, f"{root}{name}/"))
        files = Files(listing, on_disk(path), mode)
    elif path.is_file() and kind:
        tree = list_archive(path, listing)
        layout = find_layout(path, tree, _common_root(tree))
        files = Files(listing, kind.store(path), mode, stamp_of(path))
    elif path.is_file():
        raise InputError(f"is neither a folder nor an archive ({', '.join(ARCHIVES)}); see prepare_data.folder", key=path)
    else:
        raise InputError(
            "no such folder; put class folders of images there, or name another one, or an archive, below the raw "
            "folder (DDPM_DATA_ROOT or data/raw) in prepare_data.folder",
            key=path,
        )
    _arrange(listing, layout, path, test_share)
    return files, layout.class_names


def find_layout(path: Path, folders: Folders, root: str = "") -> Layout:
    """Where the class folders are, below `root`. Raises InputError if there are none, or strangers in the test folder."""
    found = folders(root)
    train = next((f"{root}{name}/" for name in TRAIN_NAMES if name in found), None)
    test = next((f"{root}{name}/" for name in TEST_NAMES if name in found), None)
    roots = (train, test) if train and test else (train or root,)
    names = [_class_names(path, folders, place) for place in roots]
    if strangers := sorted(set(names[-1]) - set(names[0])):
        raise InputError(
            f"is no class of {path / roots[0]}; both splits need the same class folders", key=path / roots[1] / strangers[0]
        )
    return Layout(roots, names[0])


def held_out(share: float, where: Path, advice: str) -> Callable[[np.ndarray], np.ndarray]:
    """A stratified split; raises InputError, with advice, for too few images."""

    def split(labels: np.ndarray) -> np.ndarray:
        try:
            return stratified(labels, share)
        except ValueError as error:
            raise InputError(f"its {len(labels)} images cannot be split ({error}); {advice}", key=where) from None

    return split


def _class_names(path: Path, folders: Folders, root: str) -> list[str]:
    names = [name for name in folders(root) if not name.startswith(".") and name not in NO_CLASSES]
    if not names:
        raise InputError("holds no class folders; every class needs a folder with its images", key=path / root)
    return names


def _folders(path: Path, folder: str) -> list[str]:
    try:
        with os.scandir(path / folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}); change its rights", key=path / folder) from None


def walk(path: Path, folder: str) -> Iterator[FoundFile]:
    """All pictures in a folder and those below it; links to folders are not followed."""
    todo = [folder]
    while todo:
        here = todo.pop()
        try:
            with os.scandir(path / here) as entries:
                for entry in entries:
                    if entry.is_dir():
                        todo += [] if entry.is_symlink() else [f"{here}{entry.name}/"]
                    elif is_picture_name(entry.name):
                        yield _entry(here, entry)
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror}); change its rights", key=path / here) from None


def _entry(folder: str, file: os.DirEntry) -> FoundFile:
    try:
        found = file.stat()
        size, stamp = found.st_size, (found.st_mtime_ns * 31 + found.st_size) % STAMPS + 1
    except OSError:  # a link to nothing, which will be named when it is read
        size, stamp = 0, 1
    return FoundFile(folder + file.name, 0, size, stamp)


def _common_root(tree) -> str:
    """The one folder that holds everything in an archive, unless it is a train or class folder itself; "" if there is none."""
    outer = [name for name in tree("") if name not in NO_CLASSES]
    if len(outer) != 1 or tree.holding & {"", f"{outer[0]}/"} or outer[0] in TRAIN_NAMES + TEST_NAMES:
        return ""
    return f"{outer[0]}/"


def _arrange(listing: ImageIndex, layout: Layout, path: Path, test_share: float) -> None:
    """Sort what was found into splits and classes, in the order of the names of folders and files."""
    label_of = {name: label for label, name in enumerate(layout.class_names)}

    def wanted() -> Iterator[Assignment]:
        for name in listing.names():
            for part, root in enumerate(layout.roots):
                first, _, rest = name[len(root) :].partition("/")
                if name.startswith(root) and rest and first in label_of:
                    yield Assignment(name, part, label_of[first], _key(label_of[first], rest))

    def split(labels: np.ndarray) -> np.ndarray:
        _refuse_empty(path / layout.roots[0], layout.class_names, labels)
        advice = "add images, change prepare_data.test_share, or make train and test folders"
        return held_out(test_share, path / layout.roots[0], advice)(labels)

    listing.assign(wanted(), split if len(layout.roots) == 1 else None)
    if len(layout.roots) == 2:
        _refuse_empty(path / layout.roots[0], layout.class_names, listing.labels(0))
        if not listing.counts[1]:
            _refuse_empty(path / layout.roots[1], [], listing.labels(1))


def _key(label: int, rest: str) -> bytes:
    """Orders the pictures of a class as `ls -R` lists them: those in a folder, then those in its folders, by name."""
    *folders, file = map(os.fsencode, rest.split("/"))
    return label.to_bytes(4, "big") + b"".join(b"\1" + name + b"\0" for name in folders) + b"\0" + file


def _refuse_empty(root: Path, names: list[str], labels: np.ndarray) -> None:
    if not len(labels):
        raise InputError(f"holds no images (looked for {', '.join(sorted(EXTENSIONS))})", key=root)
    counts = np.bincount(labels, minlength=len(names))
    if not counts.all():
        name = names[int(counts.argmin())]
        raise InputError("holds no images; add some, or remove the folder if it is no class", key=root / name)


def stratified(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Which of the items with these labels int64 (N,) are held out, bool (N,): of each class about this share.

    Draws as `train_test_split(np.arange(N), test_size=share, stratify=labels, random_state=seed)` does, so that what was once
    split stays split that way. Raises ValueError, with the reason, where there are too few items.
    """
    counts = np.bincount(labels)
    present = np.flatnonzero(counts)
    counts = counts[present]
    held = math.ceil(share * len(labels))
    kept = len(labels) - held
    if counts.min(initial=2) < 2:
        raise ValueError("a class has only one")
    if min(kept, held) < len(counts):
        raise ValueError(f"{kept} to train on and {held} to test, but there are {len(counts)} classes")
    random = np.random.RandomState(seed)
    train = _shares(counts, kept, random)
    test = _shares(counts - train, held, random)
    mask = np.zeros(len(labels), bool)
    # Items of a class lie together in it, in their order; None: as they do already.
    by_class = np.argsort(labels, kind="stable") if (labels[1:] < labels[:-1]).any() else None
    ends = np.cumsum(counts)
    for first, end, before, drawn in zip(ends - counts, ends, train, test, strict=True):
        chosen = first + random.permutation(end - first)[before : before + drawn]
        mask[chosen if by_class is None else by_class[chosen]] = True
    return mask


def _shares(counts: np.ndarray, total: int, random: np.random.RandomState) -> np.ndarray:
    """How many of `total` draws each class gets: its part rounded down, and one more for those with the largest remainders,
    ties broken at random."""
    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    remainders, left = exact - shares, int(total - shares.sum())
    for value in np.unique(remainders)[::-1]:
        if left <= 0:
            break
        tied = np.flatnonzero(remainders == value)
        chosen = random.choice(tied, size=min(len(tied), left), replace=False)
        shares[chosen] += 1
        left -= len(chosen)
    return shares.astype(int)
