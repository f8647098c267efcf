"""A folder of class folders as a data set; every picture is read when it is asked for."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.model_selection import train_test_split

from ddpm.files import InputError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
TRAIN_NAMES, TEST_NAMES = ("train",), ("test", "val", "validation")
Pictures = tuple["LazyPictures", np.ndarray]


class LazyPictures(Sequence):
    """Pictures on disk as uint8 (H, W, C) arrays; `mode` ("L", "RGB") converts all, None keeps the channels of each."""

    def __init__(self, paths: list[Path], mode: str | None):
        self.paths, self.mode = paths, mode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        path = self.paths[index]
        try:
            with Image.open(path) as opened:
                picture = _eight_bits(opened)
                mode = self.mode or ("L" if picture.mode in ("1", "L", "LA") else "RGB")
                array = np.asarray(picture.convert(mode))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: cannot be read as an image ({error}); repair or remove it") from None
        return array[..., None] if array.ndim == 2 else array


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A 16-bit picture in 8 bits; Pillow's own conversion cuts everything above 255 to white."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"its mode {picture.mode!r} has no known range of values")
    return picture


def read_image_folder(folder: Path, mode: str | None, test_share: float) -> tuple[Pictures, Pictures, list[str]]:
    """Both splits and the class names, sorted.

    ROOT/train and ROOT/test (or val) hold the class folders if both exist; otherwise ROOT/train or ROOT does, and a stratified
    share of `test_share` becomes the test split. Raises InputError for a folder that is missing or empty, and for an empty class.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; put class folders of images there, or name another one below the raw folder "
            "(DDPM_DATA_ROOT or data/raw) in prepare_data.folder"
        )
    train_root = next((folder / name for name in TRAIN_NAMES if (folder / name).is_dir()), None)
    test_root = next((folder / name for name in TEST_NAMES if (folder / name).is_dir()), None)
    if train_root and test_root:
        names = _class_names(train_root)
        strangers = sorted(set(_class_names(test_root)) - set(names))
        if strangers:
            raise InputError(f"{test_root / strangers[0]}: is no class of {train_root}; both splits need the same class folders")
        train, test = _list_images(train_root, names), _list_images(test_root, names)
        _refuse_empty_class(train_root, names, train[1])
    else:
        root = train_root or folder
        names = _class_names(root)
        images = _list_images(root, names)
        _refuse_empty_class(root, names, images[1])
        train, test = _stratified(root, images, test_share)
    return (LazyPictures(train[0], mode), train[1]), (LazyPictures(test[0], mode), test[1]), names


def _class_names(root: Path) -> list[str]:
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InputError(f"{root}: holds no class folders; every class needs a folder with its images")
    return names


def _list_images(root: Path, names: list[str]) -> tuple[list[Path], np.ndarray]:
    paths, labels = [], []
    for label, name in enumerate(names):
        # os.walk in sorted order: the order of files must not depend on the file system.
        for parent, folders, files in os.walk(root / name):
            folders.sort()
            found = [Path(parent) / file for file in sorted(files) if Path(file).suffix.lower() in EXTENSIONS]
            paths += found
            labels += [label] * len(found)
    if not paths:
        raise InputError(f"{root}: holds no images (looked for {', '.join(sorted(EXTENSIONS))})")
    return paths, np.asarray(labels, np.int64)


def _refuse_empty_class(root: Path, names: list[str], labels: np.ndarray) -> None:
    for label, name in enumerate(names):
        if label not in labels:
            raise InputError(f"{root / name}: holds no images; add some, or remove the folder if it is no class")


def _stratified(folder: Path, images: tuple[list[Path], np.ndarray], share: float):
    paths, labels = images
    try:
        train, test = train_test_split(np.arange(len(paths)), test_size=share, stratify=labels, random_state=0)
    except ValueError as error:
        raise InputError(
            f"{folder}: its {len(paths)} images cannot be split ({error}); add images, change prepare_data.test_share, "
            "or make train and test folders"
        ) from None
    return tuple(([paths[i] for i in np.sort(part)], labels[np.sort(part)]) for part in (train, test))
