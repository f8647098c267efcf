"""Finds and reads MNIST's idx files, plain or gzipped."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from ddpm.core.files import InputError

IDX_FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}

_UNSIGNED_BYTE = 8


def find_idx_folder(root: Path, name: str, torchvision_name: str) -> Path | None:
    """Returns the folder that holds all four files, or None: ROOT/NAME, torchvision's ROOT/Name/raw, or ROOT itself if it has
    the name.

    MNIST, Fashion-MNIST and KMNIST share their file names, so the name of the folder must tell them apart.
    """
    names = {name, torchvision_name}
    candidates = [root / name, root / torchvision_name / "raw", root / name / torchvision_name / "raw"]
    resolved = root.resolve()
    candidates += [root] if resolved.name in names or (resolved.name == "raw" and resolved.parent.name in names) else []
    for folder in candidates:
        if all(_find(folder, file) for file in IDX_FILES.values()):
            return folder
    return None


def read_idx_split(folder: Path, split: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images uint8 (N, H, W, 1) and labels int64 (N,) of "train" or "test". Raises InputError for a damaged file."""
    images_path = _find(folder, IDX_FILES[split, "images"])
    labels_path = _find(folder, IDX_FILES[split, "labels"])
    images, labels = read_idx(images_path, dimensions=3), read_idx(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise InputError(f"has {len(labels)} labels for the {len(images)} images of {images_path}", key=labels_path)
    if labels.max() >= classes:
        raise InputError(f"holds the label {labels.max()}, but there are {classes} classes: replace it", key=labels_path)
    return images[..., None], labels.astype(np.int64)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Returns the uint8 array of an idx file, plain or .gz. Raises InputError if it is damaged or of another kind."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot be read ({error}); it is truncated or damaged: replace it", key=path) from None
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes([0, 0, _UNSIGNED_BYTE, dimensions]):
        raise InputError(f"is no idx file of {dimensions} dimensions: replace it", key=path)
    shape = np.frombuffer(data, ">u4", dimensions, offset=4).tolist()
    if 0 in shape:
        raise InputError("holds no items: replace it", key=path)
    if len(data) != header + math.prod(shape):
        raise InputError(
            f"holds {len(data) - header:,} bytes of data, but its header says {math.prod(shape):,}; "
            "it is truncated or damaged: replace it",
            key=path,
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _find(folder: Path, name: str) -> Path | None:
    """Returns the file of one of IDX_FILES. Kaggle has a dot in its name, or a folder of that name around it."""
    names = name, name.replace("-idx", ".idx")
    paths = (folder / around / f"{file}{end}" for around in ("", *names) for file in names for end in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)
