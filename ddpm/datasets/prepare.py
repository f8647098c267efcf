"""Turns the raw images of a data set into one memory-mappable uint8 array file per split, labels, and a meta.json.

Threads decode and resize the images. Preparation of a data set of files resumes after it was killed (`resume`).
"""

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from ddpm.core.files import InputError, atomic, remove, sha256, write_json, writing
from ddpm.core.params import lookup
from ddpm.core.paths import PREPARED_DIR
from ddpm.core.progress import Progress
from ddpm.data.prepared import META, SPLITS
from ddpm.datasets.fill import converted, fill, mismatch, unreadable
from ddpm.datasets.registry import DATASETS, OPTIONAL_SETTINGS, Source
from ddpm.datasets.resume import PartialArrays, write_header
from ddpm.datasets.settings import PrepareData
from ddpm.datasets.statistics import blocks, statistics

LEFT_OUT = "left_out.txt"
IMAGES = tuple(f"{split}_images.npy" for split in SPLITS)


def prepare(dataset: str, settings: PrepareData, folder: Path = PREPARED_DIR, workers: int = 1, fresh: bool = False) -> dict:
    """Loads a data set, resizes its images, and writes the arrays, and meta.json last. Returns the content of meta.json.

    workers: the number of threads.
    fresh: start from the beginning instead of resuming.
    Raises InputError, with the file or the setting as key, for anything wrong with the images.
    """
    source = lookup(DATASETS, dataset, "dataset").load(settings)
    if blank := [name for name in source.class_names if not name.strip()]:
        raise InputError(f"the class {blank[0]!r} has no name that can be read; rename it", key=dataset)
    # An old meta.json would make new, incomplete arrays look valid.
    for name in (META, LEFT_OUT):
        remove(folder / name)
    with writing(folder):  # an error is better now than after the work
        folder.mkdir(parents=True, exist_ok=True)
    recorded = recorded_settings(dataset, settings)
    # skip_bad changes no image that is kept.
    content = {key: value for key, value in recorded.items() if key != "skip_bad"}
    partial = PartialArrays(source.files, IMAGES, content, fresh) if source.files else None
    left_out, ranges = 0, {}
    with partial or nullcontext():
        if partial:
            left_out, ranges = _write_from_files(partial, source, settings, folder, dataset, workers)
        else:
            shape = converted(next(iter(source.train.images)), settings).shape
            for split, raw in zip(SPLITS, (source.train, source.test), strict=True):
                _write_images(folder / f"{split}_images.npy", raw.images, shape, settings, f"{dataset} {split}")
                _write_labels(folder / f"{split}_labels.npy", raw.labels)
        meta = _describe(folder, dataset, recorded, source.class_names)
        meta |= ({"left_out": left_out} if left_out else {}) | ({"value_range": ranges} if ranges else {})
        write_json(folder / META, meta)
        if partial:
            partial.discard()
    return meta


def _describe(folder: Path, dataset: str, recorded: dict, class_names: Sequence[str]) -> dict:
    """Returns the content of meta.json for the arrays in the folder."""
    arrays = {split: np.load(folder / f"{split}_images.npy", mmap_mode="r") for split in SPLITS}
    found = {split: statistics(images) for split, images in arrays.items()}
    for split, of_split in found.items():
        for weakness in of_split.weaknesses():
            print(f"warning: {dataset} {split}: {weakness}", file=sys.stderr, flush=True)
    names = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    return {
        "dataset": dataset,
        "made_with": recorded,
        "required_accuracy": DATASETS[dataset].required_accuracy,
        "counts": {split: len(images) for split, images in arrays.items()},
        "shape": list(arrays["train"].shape[1:]),
        "class_names": list(class_names),
        "mean": [round(value / 255, 6) for value in found["train"].mean],
        "sha256": {name: sha256(folder / f"{name}.npy") for name in names},
    }


def _write_images(path: Path, images: np.ndarray, shape: tuple[int, int, int], settings: PrepareData, name: str) -> None:
    # As a stream: writing to a memory map on a full disk kills the process.
    with atomic(path) as temporary, open(temporary, "wb") as file, Progress(name, len(images), "images") as progress:
        write_header(file, len(images), shape)
        for k, image in enumerate(images):
            image = converted(image, settings)
            if image.shape != shape:
                raise mismatch(image, shape, f"{name}, image {k}")
            file.write(image.tobytes())
            progress.advance()


def _write_labels(path: Path, labels: np.ndarray) -> None:
    with atomic(path) as temporary:
        np.save(temporary, labels)


def _write_from_files(
    partial: PartialArrays, source: Source, settings: PrepareData, folder: Path, dataset: str, workers: int
) -> tuple[int, dict]:
    """Writes the arrays of a data set of files. Returns the number of those left out, and the ranges of `measure`."""
    failed = fill(partial, source.files, settings, dataset, workers)
    if failed and not (settings.skip_bad and partial.shape):
        raise unreadable(failed, sum(partial.counts), partial.unreadable)
    partial.save()
    kept = [partial.present(split) for split in range(len(SPLITS))]
    labels = [raw.labels[present] for raw, present in zip((source.train, source.test), kept, strict=True)]
    for split, values in zip(SPLITS, labels, strict=True):
        counts = np.bincount(values, minlength=len(source.class_names))
        if not counts.any() or (split == "train" and not counts.all()):
            has_classes = split == "train" and source.class_names
            name = f"class {source.class_names[int(counts.argmin())]!r}" if has_classes else f"the {split} split"
            raise InputError(f"no image of {name} can be read; repair some of those that {partial.unreadable} names", key=dataset)
    for split, values, present, path in zip(SPLITS, labels, kept, partial.paths, strict=True):
        _publish(path, folder / path.name, present)
        _write_labels(folder / f"{split}_labels.npy", values)
    if failed:
        with atomic(folder / LEFT_OUT) as temporary:
            shutil.copyfile(partial.unreadable, temporary)
        print(f"{dataset}: {len(failed):,} unreadable images are left out; {folder / LEFT_OUT} names them", flush=True)
    return len(failed), partial.ranges


def _publish(path: Path, target: Path, present: np.ndarray) -> None:
    """Links or copies the file of an array to its final name, without the rows that are not present."""
    with atomic(target) as temporary:
        if present.all():
            try:
                # Both names stay until meta.json is written, so that a kill in between loses nothing.
                os.link(path, temporary)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(path, temporary)
            return
        images = np.load(path, mmap_mode="r")
        with open(temporary, "wb") as file:
            write_header(file, int(present.sum()), images.shape[1:])
            start = 0
            for block in blocks(images):
                file.write(block[present[start : start + len(block)]].tobytes())
                start += len(block)


def recorded_settings(dataset: str, settings: PrepareData) -> dict:
    """Returns the settings that decide what is in the arrays, for `made_with` in meta.json."""
    ignored = set(OPTIONAL_SETTINGS) - set(DATASETS[dataset].optional_settings)
    if settings.image_size and settings.resize_mode == "pad":
        ignored.discard("background")
    return {"dataset": dataset, **{key: value for key, value in settings.as_written().items() if key not in ignored}}
