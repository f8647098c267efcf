"""The prepared data set on disk: what `prepare_data` writes and every later stage reads.

meta.json            counts, shape, mean, class names, how it was made, SHA-256 of the arrays; written last
train_images.npy     uint8 (N, H, W, C), memory-mappable; the same for test_
train_labels.npy     int64 (N,)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.core.files import InputError, read_json
from ddpm.core.paths import PREPARED_DIR
from ddpm.data.images import to_model_range, to_tensor

META = "meta.json"
SPLITS = ("train", "test")


class Split(NamedTuple):
    """images: uint8 (N, H, W, C), memory-mapped; labels: int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray


class Prepared(NamedTuple):
    """A prepared data set: its meta.json and both splits."""

    meta: dict
    train: Split
    test: Split

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return tuple(self.meta["shape"])

    @property
    def class_names(self) -> list[str]:
        return self.meta["class_names"]

    def identity(self) -> dict:
        """What a model must know of its data, for its config.json."""
        return {key: self.meta[key] for key in ("dataset", "shape", "class_names", "sha256")}


def open_prepared(dataset: str, settings: Mapping[str, Any], folder: Path = PREPARED_DIR) -> Prepared:
    """Open the prepared data set; the arrays stay on disk. settings: the `prepare_data` section as it stands in params.yaml.

    Raises InputError if a file is missing or damaged, or if the data was made with other settings than params.yaml has now.
    """
    meta = read_json(folder / META, "prepare_data")
    current = {"dataset": dataset, **settings}
    # Settings that this data set does not read are not recorded, so they may differ.
    for key, value in meta.get("made_with", {"dataset": None}).items():
        if current.get(key) != value:
            raise InputError(
                f"was made with {key} = {value!r}, but params.yaml has {current.get(key)!r}; run `dvc repro prepare_data`",
                key=folder,
            )
    return Prepared(meta, *(_open_split(folder, meta, name) for name in SPLITS))


def open_test(folder: Path = PREPARED_DIR) -> tuple[dict, Split]:
    """The content of meta.json and the test split, whatever settings made them. Raises InputError as `open_prepared` does."""
    meta = read_json(folder / META, "prepare_data")
    return meta, _open_split(folder, meta, "test")


def _open_split(folder: Path, meta: dict, name: str) -> Split:
    arrays = []
    for kind, shape in (("images", [meta["counts"][name], *meta["shape"]]), ("labels", [meta["counts"][name]])):
        path = folder / f"{name}_{kind}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"cannot be read ({error}); run `dvc repro -f prepare_data`", key=path) from None
        if list(array.shape) != shape:
            raise InputError(f"has shape {list(array.shape)}, {META} says {shape}; run `dvc repro -f prepare_data`", key=path)
        arrays.append(array)
    return Split(*arrays)


def held_out(data: Prepared, count: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Up to `count` random test images (N, C, H, W) in [-1, 1], and their labels (N,)."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(data.test.images))[:count])
    return to_model_range(to_tensor(data.test.images[chosen], device)), torch.tensor(data.test.labels[chosen], device=device)
