"""Reads arrays of images, with or without labels, as a data set: one .npz or .npy file, or .npy files in a folder.

The images of a file are read one after another, so it may be larger than the memory.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from ddpm.core.files import InputError, first_line, print_line
from ddpm.datasets.image_io import Extent, auto_range
from ddpm.datasets.splits import held_out

# Names of the arrays: training images and labels, test images and labels; all labels may be missing. MedMNIST's validation split
# is not used, as elsewhere where there is a test split.
LAYOUTS = (
    ("train_images", "train_labels", "test_images", "test_labels"),  # MedMNIST
    ("x_train", "y_train", "x_test", "y_test"),  # Keras
    ("images", "labels", None, None),
    ("arr_0", "arr_1", None, None),  # OpenAI's evaluator, and samples/*.npz
)
Open = Callable[[], AbstractContextManager[IO[bytes]]]
_DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


class _Header(NamedTuple):
    """The header of a .npy file.

    shape, dtype: of its array.
    size: its own bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    size: int


class ArrayImages:
    """Images (N, H, W, 1 or 3) of an array in a file, as uint8; iteration reads one after another.

    name: the file, and the array in it, for messages.
    open: opens the bytes of a .npy file.
    rows: a mask bool of the images that belong to this split, or None for all.
    scale: the values that become 0 and 255, or None for uint8.

    Raises InputError for an array that holds no images.
    """

    def __init__(self, name: str, open: Open, rows: np.ndarray | None = None, scale: Extent | None = None):
        self.name, self._open, self.rows, self.scale = name, open, rows, scale
        header = _header(name, open)
        shape = header.shape if len(header.shape) == 4 else (*header.shape, 1)
        if len(shape) != 4 or shape[3] not in (1, 3) or not all(shape) or header.dtype.kind not in "uif":
            raise InputError(
                f"is {header.dtype} of shape {header.shape}; images are numbers (N, H, W), (N, H, W, 1) or (N, H, W, 3)", key=name
            )
        self._offset, self.dtype, self.shape = header.size, header.dtype, shape

    def __len__(self) -> int:
        return self.shape[0] if self.rows is None else int(self.rows.sum())

    def __iter__(self) -> Iterator[np.ndarray]:
        for values in self.values():
            if self.scale is not None:
                _check_finite(values, self.name)
                low, high = self.scale
                values = np.rint(np.clip((values - float(low)) * (255 / ((high - low) or 1)), 0, 255)).astype(np.uint8)
            yield values

    def values(self) -> Iterator[np.ndarray]:
        """Yields the images of this split with the values of the file."""
        count = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        try:
            with self._open() as file:
                file.read(self._offset)
                for k in range(self.shape[0]):
                    data = file.read(count)
                    if len(data) != count:
                        raise EOFError(f"it ends after {k} of {self.shape[0]} images")
                    if self.rows is None or self.rows[k]:
                        yield np.frombuffer(data, self.dtype).reshape(self.shape[1:])
        except _DAMAGED as error:
            raise InputError(f"cannot be read ({first_line(error)}); replace it", key=self.name) from None


def read_arrays(
    path: Path, test_share: float, value_range: list[float] | None, with_classes: bool = True
) -> tuple[list[tuple], list[str]]:
    """Returns ((images, labels) of the training split, and of the test split) and the class names.

    path: an .npz file or a folder of .npy files, with the names of one of LAYOUTS, or an .npy file of images. Without a test
        split, a stratified share of `test_share` becomes it.
    value_range: the values that become 0 and 255 in images other than uint8; None is `auto_range` of both splits.
    with_classes: False reads no labels. Images without labels have no classes; their labels are zeros.
    Raises InputError for missing or damaged files, and for arrays that are no images and labels, or of different lengths.
    """
    opened = _arrays_of(path)
    layout = next((names for names in LAYOUTS if names[0] in opened), None)
    if layout is None:
        shown = ", ".join(sorted(opened)[:10]) or "nothing"
        known = "; ".join(" and ".join(names[:2]) for names in LAYOUTS)
        raise InputError(f"holds {shown}; name the arrays of images and labels as one of {known}", key=path)
    parts = [layout[:2], layout[2:]] if layout[2] in opened else [layout[:2]]
    missing = [name for _, name in parts if name not in opened]
    if with_classes and len(missing) == len(parts):
        print_line(f"{path}: holds no {' and no '.join(missing)}; the images have no classes")
        with_classes = False
    if with_classes and missing:
        raise InputError(f"holds no {missing[0]}, the labels of its images; add it", key=path)
    images = [ArrayImages(f"{path}: {names[0]}", opened[names[0]]) for names in parts]
    raw_labels = [
        _labels(f"{path}: {names[1]}", opened[names[1]], len(found)) if with_classes else np.zeros(len(found), np.int64)
        for names, found in zip(parts, images, strict=True)
    ]
    classes, labels = np.unique(np.concatenate(raw_labels), return_inverse=True)
    class_names = _class_names(path, classes) if with_classes else []
    labels = np.split(labels.astype(np.int64), [len(raw_labels[0])])
    if len(images) == 1:
        names = [str(value) for value in classes]
        test = held_out(labels[0], test_share, names, path, "add images, or change prepare_data.test_share")
        images = [ArrayImages(images[0].name, opened[layout[0]], rows) for rows in (~test, test)]
        labels = [labels[0][~test], labels[0][test]]
    elif unknown := sorted(set(labels[1].tolist()) - set(labels[0].tolist())):
        raise InputError(f"holds the label {classes[unknown[0]]}, which no training image has", key=f"{path}: {layout[3]}")
    _set_scale(images, value_range)
    return list(zip(images, labels, strict=True)), class_names


def _arrays_of(path: Path) -> dict[str, Open]:
    """Returns a function for each array that opens its .npy file, by the array's name."""
    if path.is_dir():
        return {file.stem: partial(open, file, "rb") for file in sorted(path.glob("*.npy"))}
    if not path.is_file():
        raise InputError("no such file; name an .npz or .npy file, or a folder of .npy files, in prepare_data.folder", key=path)
    if path.suffix == ".npy":
        return {"images": partial(open, path, "rb")}
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot be read as .npz ({first_line(error)}); name an .npz file or a folder", key=path) from None
    return {name: partial(_member, path, f"{name}.npy") for name in names}


@contextmanager
def _member(path: Path, name: str) -> Iterator[IO[bytes]]:
    """Opens a file of an archive; both are closed at the end, also where the file cannot be opened."""
    with zipfile.ZipFile(path) as archive, archive.open(name) as file:
        yield file


def _header(name: str, open: Open) -> _Header:
    """Reads the header of a .npy file. Raises InputError if it is damaged, or in an order or of objects that cannot be read."""
    try:
        with open() as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, is_fortran, dtype = read[version](file)
            size = file.tell()
    except (KeyError, *_DAMAGED) as error:  # a version of the format that is not known
        raise InputError(f"cannot be read as .npy ({first_line(error)}); replace it", key=name) from None
    if is_fortran and len(shape) > 1:
        raise InputError("is stored in Fortran order; save np.ascontiguousarray of it", key=name)
    if dtype.hasobject:
        raise InputError("holds Python objects, which are not read; save numbers or texts", key=name)
    return _Header(shape, dtype, size)


def _labels(name: str, open: Open, count: int) -> np.ndarray:
    """Reads the labels (N,) or (N, 1) of `count` images: whole numbers or texts."""
    shape = _header(name, open).shape
    if shape not in ((count,), (count, 1)):
        several = len(shape) == 2 and shape[0] == count
        reason = "several labels per image are not possible" if several else f"there are {count:,} images"
        raise InputError(f"has the shape {shape}, but {reason}; give one label per image", key=name)
    try:
        with open() as file:
            labels = np.load(file, allow_pickle=False).reshape(-1)
    except _DAMAGED as error:
        raise InputError(f"cannot be read ({first_line(error)}); replace it", key=name) from None
    if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iubU":
        raise InputError(f"is {labels.dtype}; labels are whole numbers or texts", key=name)
    return labels.astype(np.int64) if labels.dtype.kind in "iub" else labels


def _set_scale(images: list[ArrayImages], value_range: list[float] | None) -> None:
    """Sets the values that become 0 and 255, for arrays other than uint8."""
    others = [found for found in images if found.dtype != np.uint8]
    if others and value_range is None:
        extents = []
        for found in others:
            for values in found.values():
                _check_finite(values, found.name)
                extents.append((values.min().item(), values.max().item()))
        value_range = list(auto_range(min(low for low, _ in extents), max(high for _, high in extents)))
        print(
            f"{others[0].name}: values from {value_range[0]:,} to {value_range[1]:,} become 0 to 255 (prepare_data.value_range)"
        )
    for found in others:
        found.scale = tuple(value_range)


def _check_finite(values: np.ndarray, name: str) -> None:
    if not np.isfinite(values).all():
        raise InputError("holds values that are not finite; replace them", key=name)


def _class_names(path: Path, classes: np.ndarray) -> list[str]:
    """Returns the names of classes: MedMNIST's own where its package is installed, else the labels."""
    flag = path.stem.partition("_")[0]  # as in pathmnist_64.npz
    if flag.endswith("mnist") and find_spec("medmnist"):
        names = import_module("medmnist").INFO.get(flag, {}).get("label", {})
        if {str(value) for value in classes} <= names.keys():
            return [names[str(value)] for value in classes]
    return [str(value) for value in classes]
