"""Opens the prepared data set, which `prepare_data` writes and every later stage reads.

meta.json            counts, shape, mean, class names, settings, required accuracy, SHA-256 of the arrays; written last
train_images.npy     uint8 (N, H, W, C), memory-mappable; the same for test_
train_labels.npy     int64 (N,); zeros where the images have no classes, and meta.json no class names
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.core.files import InputError, first_line, read_json
from ddpm.core.paths import PREPARED_DIR
from ddpm.data.images import to_model_range, to_tensor

META = "meta.json"
IDENTITY = ("dataset", "shape", "class_names", "sha256")  # the entries of meta.json that a model records too
SPLITS = ("train", "test")


class Split(NamedTuple):
    """One split. images: uint8 (N, H, W, C), memory-mapped; labels: int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray


class Prepared(NamedTuple):
    """A prepared data set. meta: the content of meta.json; train, test: its splits."""

    meta: dict
    train: Split
    test: Split

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (H, W, C) of an image."""
        return tuple(self.meta["shape"])

    @property
    def class_names(self) -> list[str]:
        """The name of each label; none where the images have no classes."""
        return self.meta["class_names"]

    @property
    def class_counts(self) -> list[int]:
        """The number of training images of each class."""
        count = len(self.class_names)
        return np.bincount(self.train.labels, minlength=count)[:count].tolist()

    def identity(self) -> dict:
        """Returns what identifies the data in the config.json of a model: name, shape, class names and hashes."""
        return {key: self.meta[key] for key in IDENTITY}


def open_prepared(dataset: str, settings: Mapping[str, Any], folder: Path = PREPARED_DIR) -> Prepared:
    """Opens the prepared data set; the arrays stay on disk.

    settings: the section `prepare_data` as params.yaml holds it.
    Raises InputError if a file is missing or damaged, or if the data was made with other settings.
    """
    meta = read_json(folder / META, "prepare_data")
    current = {"dataset": dataset, **settings}
    # meta.json holds only the settings that the data set reads; the others may differ.
    for key, value in meta.get("made_with", {"dataset": None}).items():
        if current.get(key) != value:
            raise InputError(
                f"was made with {key} = {value!r}, but params.yaml has {current.get(key)!r}; run `dvc repro prepare_data`",
                key=folder,
            )
    return Prepared(meta, *(_open_split(folder, meta, name) for name in SPLITS))


def open_test(folder: Path = PREPARED_DIR) -> tuple[dict, Split]:
    """Returns the content of meta.json and the test split, for any settings. Raises InputError for missing or damaged files."""
    meta = read_json(folder / META, "prepare_data")
    return meta, _open_split(folder, meta, "test")


def _open_split(folder: Path, meta: dict, name: str) -> Split:
    arrays = []
    for kind, shape in (("images", [meta["counts"][name], *meta["shape"]]), ("labels", [meta["counts"][name]])):
        path = folder / f"{name}_{kind}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"cannot be read ({first_line(error)}); run `dvc repro -f prepare_data`", key=path) from None
        if list(array.shape) != shape:
            raise InputError(f"has shape {list(array.shape)}, {META} says {shape}; run `dvc repro -f prepare_data`", key=path)
        arrays.append(array)
    return Split(*arrays)


def held_out(data: Prepared, count: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns up to `count` random test images, float32 (N, C, H, W) in [-1, 1], and their labels int64 (N,)."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(data.test.images))[:count])
    return to_model_range(to_tensor(data.test.images[chosen], device)), torch.tensor(data.test.labels[chosen], device=device)
