"""Reads pictures in class folders, or without classes, on disk or inside an archive, as a data set."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm.core.files import InputError, print_line
from ddpm.datasets.archives import ARCHIVES, Archive, kind_of, list_archive, stamp_of
from ddpm.datasets.index import MAX_STAMP, Assignment, Files, FoundFile, ImageIndex, is_hidden, is_picture_name, on_disk
from ddpm.datasets.splits import held_out, pick_splits, split_of


class Tree(NamedTuple):
    """The folders of a folder or an archive. Their paths end with "/"; "" is the folder itself.

    where: the folder or archive.
    below: returns the names of the folders in a folder, sorted, but for hidden ones.
    loose: returns whether a folder itself holds pictures.
    """

    where: Path
    below: Callable[[str], list[str]]
    loose: Callable[[str], bool]


class Layout(NamedTuple):
    """The place of the pictures.

    roots: the train and the test folder, or one folder whose pictures are to be split.
    class_names: the names of the class folders in them, sorted; none where the pictures have no classes.
    """

    roots: tuple[str, ...]
    class_names: list[str]


def read_image_folder(path: Path, test_share: float, with_classes: bool = True) -> tuple[Files, list[str]]:
    """Returns the pictures of a folder or an archive, and the class names, sorted.

    The class folders are in ROOT/train and ROOT/test (or val) if both exist; otherwise in ROOT/train or ROOT, and a stratified
    share of `test_share` becomes the test split. ROOT is the folder, or the one folder that holds everything in it. Where
    nothing but pictures is there, they have no classes.
    with_classes: False takes no folder for a class; the pictures may be in folders of any depth.
    Raises InputError for a folder that is missing or empty, for an empty class, and for a damaged archive.
    """
    index, kind = ImageIndex(), archive_kind(path)
    if kind is None:
        layout = find_layout(Tree(path, partial(_folders, path), partial(_holds_pictures, path)), with_classes)
        for root in layout.roots:
            for folder in [f"{root}{name}/" for name in layout.class_names] or [root]:
                if (path / folder).is_dir():
                    index.add_pictures(walk(path, folder))
        files = Files(index, on_disk(path))
    else:
        below = defaultdict(list)
        for folder in list_archive(path, index):
            name = folder[:-1].rpartition("/")[2]
            below[folder[: -len(name) - 1]].append(name)
        holding = {name[: name.rfind("/") + 1] for name in index.files}
        layout = find_layout(Tree(path, lambda root: sorted(below.get(root, ())), holding.__contains__), with_classes)
        files = Files(index, kind.store(path), stamp_of(path))
    _assign(index, layout, path, test_share)
    return files, layout.class_names


def archive_kind(path: Path) -> Archive | None:
    """Returns the kind of an archive, None for a folder. Raises InputError for anything else."""
    if path.is_dir():
        return None
    if not path.is_file():
        raise InputError(
            "no such folder; put images or class folders of images there, or name another one, or an archive, below the raw "
            "folder (DDPM_DATA_ROOT or data/raw) in prepare_data.folder",
            key=path,
        )
    if kind := kind_of(path):
        return kind
    raise InputError(f"is neither a folder nor an archive ({', '.join(ARCHIVES)}); see prepare_data.folder", key=path)


def find_layout(tree: Tree, with_classes: bool = True) -> Layout:
    """Returns the place of the pictures, and prints which folders are left out; with_classes as in `read_image_folder`.

    Folders that hold nothing but one folder are passed through, above splits and classes.
    Raises InputError if there are no pictures, if the layout has two meanings, and for a class of the test folder alone.
    """
    root = ""
    while len(names := tree.below(root)) == 1 and not tree.loose(root):
        below = tree.below(inner := f"{root}{names[0]}/")
        if not below or (with_classes and tree.loose(inner)) or (split_of(names[0]) and not any(map(split_of, below))):
            break
        root = inner
    here, path_of = tree.where / root, {name: f"{root}{name}/" for name in names}
    called = [name for name in names if split_of(name)]
    # Nothing but pictures, in the folder itself or in splits.
    if called == names and not any(map(tree.below, path_of.values())):
        with_classes = with_classes and not any(map(tree.loose, path_of.values() or [root]))
    # A class may be called like a split ("train" beside "bus"); then it holds pictures, and no folders.
    splits = [name for name in called if tree.below(path_of[name]) or (not with_classes and tree.loose(path_of[name]))]
    train, test = pick_splits(splits, here)
    if called and not train and (called == names or test):
        said = [name for name in called if split_of(name) == "train"]
        missing = f"needs {'class folders' if with_classes else 'pictures'}"
        advice = missing if said else "has no training split beside it; add train/, or name it in prepare_data.folder"
        raise InputError(f"is called like a split, and {advice}", key=here / (said or called)[0])
    if train and not test and called != names:
        other = next(name for name in names if name not in called)
        raise InputError(f"may be a split, or a folder like {other}; move one of them", key=here / train)
    used = [name for name in (train, test) if name]
    roots, classes = tuple(path_of[name] for name in used) or (root,), [[]]
    if with_classes:
        roots = tuple(_split_root(tree, place) for place in roots)
        classes = [_class_folders(tree, place) for place in roots]
        if unknown := sorted(set(classes[-1]) - set(classes[0])):
            message = f"is no class of {tree.where / roots[0]}; both splits need the same class folders"
            raise InputError(message, key=tree.where / roots[1] / unknown[0])
    if train:
        share = tree.where / roots[1] if test else "a share of it"
        print_line(f"{here}: training split {tree.where / roots[0]}, test split {share}")
    left_out = [str(here / name) for name in names if train and name not in used]
    kind, places = ("class folder", dict.fromkeys((root, *roots))) if with_classes else ("split", [root] * bool(train))
    left_out += [f"{tree.where / place} (pictures in no {kind})" for place in places if tree.loose(place)]
    if left_out:
        print_line(f"{here}: left out: {', '.join(left_out)}")
    return Layout(roots, classes[0])


def _split_root(tree: Tree, root: str) -> str:
    """Returns the folder of the classes of a split: the only folder in it, if that holds several folders and no pictures."""
    while len(names := tree.below(root)) == 1 and not tree.loose(root):
        inner = f"{root}{names[0]}/"
        if tree.loose(inner) or len(tree.below(inner)) < 2:
            break
        root = inner
    return root


def _class_folders(tree: Tree, root: str) -> list[str]:
    """Returns the names of the class folders.

    Raises InputError if there are none, and for one that seems to be a group of classes, or to hold splits.
    """
    if not (names := tree.below(root)):
        message = "holds no pictures and no class folders; every class needs a folder with its images"
        raise InputError(message, key=tree.where / root)
    if split_of(Path(root).name) and all(map(split_of, names)):
        raise InputError(f"is called like a split, and needs class folders; {names[0]} is none", key=tree.where / root)
    for name in names:
        below = tree.below(inner := f"{root}{name}/")
        splits = {split_of(folder) for folder in below} - {None}
        if (len(below) > 1 and not tree.loose(inner)) or (len(splits) > 1 and "train" in splits):
            raise InputError(
                f"holds folders ({', '.join(below[:3])}), which may be classes or splits; name one folder of class folders in "
                "prepare_data.folder, or set prepare_data.label to none, for pictures without classes",
                key=tree.where / inner,
            )
    return names


def _folders(path: Path, folder: str) -> list[str]:
    try:
        with os.scandir(path / folder) as entries:
            shown = [entry for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}); change its rights", key=path / folder) from None
    for entry in shown:
        # It may be a split. Links to pictures are named when they are read.
        if entry.is_symlink() and not os.path.exists(entry) and not is_picture_name(entry.name):
            raise InputError("is a link to nothing; mend or remove it", key=entry.path)
    return sorted(entry.name for entry in shown if entry.is_dir())


def _holds_pictures(path: Path, folder: str) -> bool:
    with os.scandir(path / folder) as entries:
        return any(is_picture_name(entry.name) and not entry.is_dir() for entry in entries)


def walk(path: Path, folder: str) -> Iterator[FoundFile]:
    """Yields all files in a folder and the folders below it, but for hidden ones and links to folders."""
    todo = [folder]
    while todo:
        here = todo.pop()
        try:
            with os.scandir(path / here) as entries:
                for entry in entries:
                    if entry.is_dir():
                        todo += [] if entry.is_symlink() or is_hidden(entry.name) else [f"{here}{entry.name}/"]
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


def _assign(index: ImageIndex, layout: Layout, path: Path, test_share: float) -> None:
    """Sorts the pictures into splits and classes, in the order of the names of folders and files."""
    roots, names = layout
    label_of = {name: label for label, name in enumerate(names or [""])}

    def assignments() -> Iterator[Assignment]:
        for name in index.files:
            for part, root in enumerate(roots):
                first, _, rest = name[len(root) :].partition("/") if names else ("", "", name[len(root) :])
                if name.startswith(root) and rest and first in label_of:
                    yield Assignment(name, part, label_of[first], sort_key(label_of[first], rest))

    def split(labels: np.ndarray) -> np.ndarray:
        refuse_empty(path / roots[0], names, labels)
        advice = "add images, change prepare_data.test_share, or make train and test folders"
        return held_out(labels, test_share, names, path / roots[0], advice)

    index.assign(assignments(), split if len(roots) == 1 else None)
    if len(roots) == 2:
        refuse_empty(path / roots[0], names, index.labels(0))
        if not index.counts[1]:
            refuse_empty(path / roots[1], [], index.labels(1))


def sort_key(label: int, rest: str) -> bytes:
    """Returns a key that sorts the pictures of a class as `ls -R` does: those in a folder, then those in its folders."""
    *folders, file = map(os.fsencode, rest.split("/"))
    return label.to_bytes(4, "big") + b"".join(b"\1" + name + b"\0" for name in folders) + b"\0" + file


def refuse_empty(root: Path, names: list[str], labels: np.ndarray) -> None:
    if not len(labels):
        raise InputError("holds no images whose names end as those that Pillow reads (.png, .jpg, ...)", key=root)
    counts = np.bincount(labels, minlength=len(names))
    if not counts.all():
        name = names[int(counts.argmin())]
        raise InputError("holds no images; add some, or remove the folder if it is no class", key=root / name)
