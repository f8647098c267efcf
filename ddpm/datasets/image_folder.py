"""Reads a folder of class folders, on disk or inside an archive, as a data set."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm.core.files import InputError, first_line
from ddpm.datasets.archives import ARCHIVES, kind_of, list_archive, stamp_of
from ddpm.datasets.index import MAX_STAMP, Assignment, Files, FoundFile, ImageIndex, is_picture_name, on_disk

TRAIN_NAMES, TEST_NAMES = ("train",), ("test", "val", "validation")  # of Hugging Face
# The spellings of the splits, as regular expressions of a word.
SPLITS = {"train": "train(ing)?", "test": "test(ing)?", "val": "val(id|idation)?"}
NO_CLASSES = ("__MACOSX",)  # and hidden folders
# Returns the names of the folders in a folder, sorted; paths end with "/", the root is "".
Folders = Callable[[str], list[str]]
# Returns whether a folder itself holds pictures.
Loose = Callable[[str], bool]


class Layout(NamedTuple):
    """The place of the class folders.

    roots: the train and the test folder, or one folder whose pictures are to be split.
    class_names: the names of the class folders, sorted.
    """

    roots: tuple[str, ...]
    class_names: list[str]


def read_image_folder(path: Path, test_share: float) -> tuple[Files, list[str]]:
    """Returns the pictures of a folder or an archive, and the class names, sorted.

    The class folders are in ROOT/train and ROOT/test (or val) if both exist; otherwise in ROOT/train or ROOT, and a stratified
    share of `test_share` becomes the test split. ROOT is the folder, or the one folder that holds everything in it.
    Raises InputError for a folder that is missing or empty, for an empty class, and for a damaged archive.
    """
    index, kind = ImageIndex(), kind_of(path)
    if path.is_dir():
        layout = find_layout(path, partial(_folders, path), partial(_holds_pictures, path))
        for root in layout.roots:
            for name in layout.class_names:
                if (path / root / name).is_dir():
                    index.add_pictures(walk(path, f"{root}{name}/"))
        files = Files(index, on_disk(path))
    elif path.is_file() and kind:
        folders = partial(_subfolders, list_archive(path, index))
        holding = {name[: name.rfind("/") + 1] for name in index.files}
        layout = find_layout(path, folders, holding.__contains__)
        files = Files(index, kind.store(path), stamp_of(path))
    elif path.is_file():
        raise InputError(f"is neither a folder nor an archive ({', '.join(ARCHIVES)}); see prepare_data.folder", key=path)
    else:
        raise InputError(
            "no such folder; put class folders of images there, or name another one, or an archive, below the raw "
            "folder (DDPM_DATA_ROOT or data/raw) in prepare_data.folder",
            key=path,
        )
    _assign(index, layout, path, test_share)
    return files, layout.class_names


def split_of(name: str) -> str | None:
    """Returns "train", "test" or "val" for a folder that is called like one split, such as Training or test_set; else None."""
    words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    kinds = {kind for kind, spellings in SPLITS.items() for word in words if re.fullmatch(f"({spellings})(set|data)?", word)}
    return kinds.pop() if len(kinds) == 1 else None


def find_layout(path: Path, folders: Folders, loose: Loose) -> Layout:
    """Returns the class folders, and prints which folders are left out.

    Folders that hold nothing but one folder are passed through, above splits and classes.
    Raises InputError if there are none, if the layout has two meanings, and for a class of the test folder alone.
    """
    root = ""
    while len(names := _visible(folders, root)) == 1 and not loose(root) and not loose(f"{root}{names[0]}/"):
        inner = _visible(folders, f"{root}{names[0]}/")
        if not inner or (split_of(names[0]) and not any(split_of(name) for name in inner)):
            break
        root += f"{names[0]}/"
    here = path / root
    # A class may be called like a split ("train" beside "bus"); then it holds pictures, and no folders.
    found = {name: split_of(name) for name in names if split_of(name)}
    splits = {name: kind for name, kind in found.items() if _visible(folders, f"{root}{name}/")}
    others = [name for name in names if name not in splits]
    by_kind = {kind: [name for name in splits if splits[name] == kind] for kind in SPLITS}
    for several in by_kind.values():
        if len(several) > 1:
            raise InputError(f"{' and '.join(several)} are the same split by their names; leave one of them", key=here)
    train, test = by_kind["train"], by_kind["test"] or by_kind["val"]
    if found and (set(found) == set(names) or test) and not train:
        said = [name for name in found if found[name] == "train"]
        advice = (
            "needs class folders" if said else "has no training split beside it; add train/, or name it in prepare_data.folder"
        )
        raise InputError(f"is called like a split, and {advice}", key=here / (said or list(found))[0])
    if train and not test and any(name not in found for name in others):
        raise InputError(f"may be a split or a class beside {others[0]}; move one of them", key=here / train[0])
    if not train:
        _refuse_groups(path, folders, loose, root, names)
        return Layout((root,), _class_names(path, folders, root))
    roots = tuple(_split_root(folders, loose, f"{root}{name}/") for name in (train[0], *test[:1]))
    left_out = [path / root / name for name in names if name not in (train[0], *test[:1])]
    left_out += [path / f"{place} (pictures in no class folder)" for place in (root, *roots) if loose(place)]
    print(
        ascii(f"{here}: training split {path / roots[0]}, test split {path / roots[1] if test else 'a share of it'}")[1:-1],
        flush=True,
    )
    if left_out:
        print(ascii(f"{here}: left out: {', '.join(map(str, left_out))}")[1:-1], flush=True)
    names = [_class_names(path, folders, root) for root in roots]
    if unknown := sorted(set(names[-1]) - set(names[0])):
        raise InputError(
            f"is no class of {path / roots[0]}; both splits need the same class folders", key=path / roots[1] / unknown[0]
        )
    return Layout(roots, names[0])


def _visible(folders: Folders, root: str) -> list[str]:
    return [name for name in folders(root) if not name.startswith(".") and name not in NO_CLASSES]


def _split_root(folders: Folders, loose: Loose, root: str) -> str:
    """Returns the folder of the classes of a split: the only folder in it, if that holds several folders and no pictures."""
    while len(names := _visible(folders, root)) == 1 and not loose(root):
        inner = f"{root}{names[0]}/"
        if loose(inner) or len(_visible(folders, inner)) < 2:
            break
        root = inner
    return root


def _refuse_groups(path: Path, folders: Folders, loose: Loose, root: str, names: list[str]) -> None:
    """Raises InputError for a class folder that holds several folders and no pictures: it may be a group of classes."""
    for name in names:
        inner = f"{root}{name}/"
        if not loose(inner) and len(below := _visible(folders, inner)) > 1:
            raise InputError(
                f"holds only folders ({', '.join(below[:3])}), which may be classes; name one folder of class folders in "
                "prepare_data.folder, or put its pictures into it",
                key=path / inner,
            )


def held_out(labels: np.ndarray, share: float | int, names: Sequence[str], where: Path, advice: str) -> np.ndarray:
    """Returns a mask bool (N,) of a stratified test split, for labels int64 (N,) of the classes `names`.

    share: of the test split, or its number of images.
    Raises InputError, with the key `where` and the advice, for too few images.
    """
    from sklearn.model_selection import train_test_split

    counts = np.bincount(labels, minlength=len(names))
    if len(labels) > 1 and (counts == 1).any():
        name = names[int(np.flatnonzero(counts == 1)[0])]
        raise InputError(f"the class {name!r} has only one image, which cannot be split; {advice}", key=where)
    try:
        _, test = train_test_split(np.arange(len(labels)), test_size=share, stratify=labels, random_state=0)
    except ValueError as error:
        raise InputError(f"its {len(labels)} images cannot be split ({first_line(error)}); {advice}", key=where) from None
    mask = np.zeros(len(labels), bool)
    mask[test] = True
    return mask


def _class_names(path: Path, folders: Folders, root: str) -> list[str]:
    names = _visible(folders, root)
    if not names:
        raise InputError("holds no class folders; every class needs a folder with its images", key=path / root)
    return names


def _folders(path: Path, folder: str) -> list[str]:
    try:
        with os.scandir(path / folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}); change its rights", key=path / folder) from None


def _holds_pictures(path: Path, folder: str) -> bool:
    with os.scandir(path / folder) as entries:
        return any(is_picture_name(entry.name) and not entry.is_dir() for entry in entries)


def walk(path: Path, folder: str) -> Iterator[FoundFile]:
    """Yields all files in a folder and the folders below it; links to folders are not followed."""
    todo = [folder]
    while todo:
        here = todo.pop()
        try:
            with os.scandir(path / here) as entries:
                for entry in entries:
                    if entry.is_dir():
                        todo += [] if entry.is_symlink() else [f"{here}{entry.name}/"]
                    else:
                        yield _entry(here, entry)
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror}); change its rights", key=path / here) from None


def _entry(folder: str, file: os.DirEntry) -> FoundFile:
    try:
        status = file.stat()
        size, stamp = status.st_size, (status.st_mtime_ns * 31 + status.st_size) % MAX_STAMP + 1
    except OSError:  # a broken link, which is named when it is read
        size, stamp = 0, 1
    return FoundFile(folder + file.name, 0, size, stamp)


def _subfolders(folders: set[str], root: str) -> list[str]:
    """Returns the names of the folders in `root`, of all folders of an archive."""
    return sorted({folder[len(root) :].split("/")[0] for folder in folders if folder.startswith(root) and folder != root})


def _assign(index: ImageIndex, layout: Layout, path: Path, test_share: float) -> None:
    """Sorts the pictures into splits and classes, in the order of the names of folders and files."""
    label_of = {name: label for label, name in enumerate(layout.class_names)}

    def assignments() -> Iterator[Assignment]:
        for name in index.files:
            for part, root in enumerate(layout.roots):
                first, _, rest = name[len(root) :].partition("/")
                if name.startswith(root) and rest and first in label_of:
                    yield Assignment(name, part, label_of[first], _key(label_of[first], rest))

    def split(labels: np.ndarray) -> np.ndarray:
        _refuse_empty(path / layout.roots[0], layout.class_names, labels)
        advice = "add images, change prepare_data.test_share, or make train and test folders"
        return held_out(labels, test_share, layout.class_names, path / layout.roots[0], advice)

    index.assign(assignments(), split if len(layout.roots) == 1 else None)
    if len(layout.roots) == 2:
        _refuse_empty(path / layout.roots[0], layout.class_names, index.labels(0))
        if not index.counts[1]:
            _refuse_empty(path / layout.roots[1], [], index.labels(1))


def _key(label: int, rest: str) -> bytes:
    """Returns a key that sorts the pictures of a class as `ls -R` does: those in a folder, then those in its folders."""
    *folders, file = map(os.fsencode, rest.split("/"))
    return label.to_bytes(4, "big") + b"".join(b"\1" + name + b"\0" for name in folders) + b"\0" + file


def _refuse_empty(root: Path, names: list[str], labels: np.ndarray) -> None:
    if not len(labels):
        raise InputError("holds no images whose names end as those that Pillow reads (.png, .jpg, ...)", key=root)
    counts = np.bincount(labels, minlength=len(names))
    if not counts.all():
        name = names[int(counts.argmin())]
        raise InputError("holds no images; add some, or remove the folder if it is no class", key=root / name)
