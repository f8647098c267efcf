"""The prepared data set on disk: what `prepare_data` writes and every later stage reads.

meta.json            counts, shape, mean, class names, how it was made, SHA-256 of the arrays; written last
train_images.npy     uint8 (N, H, W, C), memory-mappable; the same for test_
train_labels.npy     int64 (N,)
"""

from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from ddpm.data.datasets import CHANNELS, DATASETS, DatasetName
from ddpm.data.fit import FITS
from ddpm.files import InputError, read_json
from ddpm.params import OneOf, OrWord, Section

FOLDER = Path("data/prepared")
META = "meta.json"
SPLITS = ("train", "test")


class PrepareData(Section):
    """The `prepare_data` section: what happens to the images before training."""

    image_size: Annotated[Annotated[int, Field(ge=1, le=4096)] | None, OrWord("native")]
    fit: Annotated[str, OneOf(FITS)]
    channels: Annotated[str, OneOf(CHANNELS)]
    folder: str
    label: Annotated[str | None, OrWord("auto")]
    test_share: Annotated[float, Field(gt=0, lt=1)]
    skip_bad: bool


# Settings that only some data sets read.
SPECIAL = ("label", "skip_bad")


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


def open_prepared(dataset: DatasetName, settings: PrepareData, folder: Path = FOLDER) -> Prepared:
    """Open the prepared data set; the arrays stay on disk.

    Raises InputError if a file is missing or damaged, or if the data was made with other settings than params.yaml has now.
    """
    meta = read_json(folder / META, "prepare_data")
    wanted = made_with(dataset, settings)
    for key, value in wanted.items():
        if meta.get("made_with", {}).get(key) != value:
            raise InputError(
                f"{folder}: was made with {key} = {meta.get('made_with', {}).get(key)!r}, but params.yaml has {value!r}; "
                "run `dvc repro prepare_data`"
            )
    return Prepared(meta, *(_open_split(folder, meta, name) for name in SPLITS))


def open_test(folder: Path = FOLDER) -> tuple[dict, Split]:
    """The content of meta.json and the test split, whatever settings made them. Raises InputError as `open_prepared` does."""
    meta = read_json(folder / META, "prepare_data")
    return meta, _open_split(folder, meta, "test")


def made_with(dataset: DatasetName, settings: PrepareData) -> dict:
    """The settings that decide what is in the arrays."""
    ignored = {key for key in SPECIAL if key not in DATASETS[dataset].reads}
    return {"dataset": dataset, **settings.model_dump(exclude=ignored)}


def _open_split(folder: Path, meta: dict, name: str) -> Split:
    arrays = []
    for kind, shape in (("images", [meta["counts"][name], *meta["shape"]]), ("labels", [meta["counts"][name]])):
        path = folder / f"{name}_{kind}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: cannot be read ({error}); run `dvc repro -f prepare_data`") from None
        if list(array.shape) != shape:
            raise InputError(f"{path}: has shape {list(array.shape)}, {META} says {shape}; run `dvc repro -f prepare_data`")
        arrays.append(array)
    return Split(*arrays)
