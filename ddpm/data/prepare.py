"""Raw images -> one memory-mappable uint8 array file per split, labels, and a meta.json."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from ddpm.data.datasets import DATASETS, Images, Raw, Source
from ddpm.data.filling import fill, fitted, in_threads, mismatch
from ddpm.data.prepared import FOLDER, META, SPLITS, PrepareData, made_with
from ddpm.data.unfinished import Unfinished
from ddpm.files import InputError, atomic, remove, sha256, write_json, writing
from ddpm.params import lookup
from ddpm.runtime import Progress

LEFT_OUT = "left_out.txt"
IMAGES = tuple(f"{split}_images.npy" for split in SPLITS)
BLOCK = 16 << 20  # bytes of an array that are read at once


def prepare(dataset: str, settings: PrepareData, folder: Path = FOLDER, workers: int = 1, fresh: bool = False) -> dict:
    """Load the data set, fit its images to one size, write the arrays, and meta.json last. Returns the content of meta.json.

    `workers` threads decode pictures. Of a data set of files, what a killed preparation has done is gone on from, unless `fresh`.
    Raises InputError, naming the file or the setting, for anything wrong with the images.
    """
    source = lookup(DATASETS, dataset, "dataset").load(settings)
    # An old meta.json must not vouch for new arrays if this is interrupted.
    for name in (META, LEFT_OUT):
        remove(folder / name)
    with writing(folder):  # rather now than after the work
        folder.mkdir(parents=True, exist_ok=True)
    made = made_with(dataset, settings)
    unfinished, left_out = None, 0
    if source.files:
        # What is left out changes no other image.
        same = {key: value for key, value in made.items() if key != "skip_bad"}
        unfinished = Unfinished(source.files, IMAGES, same, fresh)
    with unfinished or nullcontext():
        if unfinished:
            left_out = _from_files(unfinished, source, settings, folder, dataset, workers)
        else:
            shape = _common_shape(source.train, settings)
            for split, raw in zip(SPLITS, (source.train, source.test), strict=True):
                _write_images(folder / f"{split}_images.npy", raw.images, shape, settings, f"{dataset} {split}", workers)
                _write_labels(folder / f"{split}_labels.npy", raw.labels)
        meta = _describe(folder, dataset, made, source.class_names) | ({"left_out": left_out} if left_out else {})
        write_json(folder / META, meta)
        if unfinished:
            unfinished.discard()
    return meta


def _describe(folder: Path, dataset: str, made: dict, class_names: Sequence[str]) -> dict:
    """The content of meta.json for the arrays in the folder."""
    arrays = {split: np.load(folder / f"{split}_images.npy", mmap_mode="r") for split in SPLITS}
    count, height, width, _ = arrays["train"].shape
    return {
        "dataset": dataset,
        "made_with": made,
        "counts": {split: len(images) for split, images in arrays.items()},
        "shape": list(arrays["train"].shape[1:]),
        "class_names": list(class_names),
        "mean": [round(float(value) / 255, 6) for value in _totals(arrays["train"]) / (count * height * width)],
        "sha256": {
            f"{split}_{kind}": sha256(folder / f"{split}_{kind}.npy") for split in SPLITS for kind in ("images", "labels")
        },
    }


def _totals(images: np.ndarray) -> np.ndarray:
    """The sum of each channel over all images, float64 (C,), exact."""
    total = np.zeros(images.shape[3], np.uint64)
    for block in _blocks(images):
        # Over the images first, which is fast; no block has so many that 32 bits are too few.
        total += block.sum(0, dtype=np.uint32).sum((0, 1), dtype=np.uint64)
    return total.astype(np.float64)


def _blocks(images: np.ndarray) -> Iterator[np.ndarray]:
    """Parts of the images that fit into memory."""
    step = max(1, BLOCK // max(1, images[0].nbytes))
    return (images[start : start + step] for start in range(0, len(images), step))


def _common_shape(raw: Raw, settings: PrepareData) -> tuple[int, int, int]:
    height, width, channels = raw.images[0].shape
    return (settings.image_size or height, settings.image_size or width, channels)


def _header(count: int, shape: Sequence[int]) -> dict:
    return {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}


def _write_images(
    path: Path, images: Images, shape: tuple[int, int, int], settings: PrepareData, name: str, workers: int
) -> None:
    """Write the images of an array, one by one, so that memory holds few."""

    def load(index: int) -> np.ndarray:
        image = fitted(images[index], settings)
        if image.shape != shape:
            raise mismatch(image, shape, f"image {index}")
        return image

    # Written as a stream, since writing to mapped memory on a full disk kills the process.
    with atomic(path) as temporary, open(temporary, "wb") as file, Progress(name, len(images), "images") as progress:
        np.lib.format.write_array_header_1_0(file, _header(len(images), shape))
        for image in in_threads(load, range(len(images)), workers):
            file.write(image.tobytes())
            progress.advance()


def _write_labels(path: Path, labels: np.ndarray) -> None:
    with atomic(path) as temporary:
        np.save(temporary, labels)


def _from_files(unfinished: Unfinished, source: Source, settings: PrepareData, folder: Path, dataset: str, workers: int) -> int:
    """Write the arrays of a data set of files; returns how many of its pictures were left out."""
    unread = fill(unfinished, source.files, settings, dataset, workers)
    if unread.count and not (settings.skip_bad and unfinished.shape):
        raise unread.refusal()
    unfinished.save()
    kept = [unfinished.present(split) for split in range(len(SPLITS))]
    for split, raw, present in zip(SPLITS, (source.train, source.test), kept, strict=True):
        there = np.bincount(raw.labels if present.all() else raw.labels[present], minlength=len(source.class_names))
        if not there.any() or (split == "train" and not there.all()):
            name = f"class {source.class_names[int(there.argmin())]!r}" if split == "train" else "the test split"
            raise InputError(f"{dataset}: no image of {name} can be read; repair some of those that {unread.path} names")
    for split, raw, present, path in zip(SPLITS, (source.train, source.test), kept, unfinished.paths, strict=True):
        _publish(path, folder / path.name, present)
        _write_labels(folder / f"{split}_labels.npy", raw.labels if present.all() else raw.labels[present])
    if unread.count:
        with atomic(folder / LEFT_OUT) as temporary:
            shutil.copyfile(unread.path, temporary)
        print(f"{dataset}: {unread.count:,} images that cannot be read are left out; {folder / LEFT_OUT} names them", flush=True)
    return unread.count


def _publish(path: Path, target: Path, present: np.ndarray) -> None:
    """Give the file of an array another name, without the rows that are not present."""
    with atomic(target) as temporary:
        if present.all():
            try:
                # Two names until the preparation is complete, so that none is lost if it is killed now.
                os.link(path, temporary)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, temporary)
            return
        images = np.load(path, mmap_mode="r")
        with open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, _header(int(present.sum()), images.shape[1:]))
            start = 0
            for block in _blocks(images):
                file.write(block[present[start : start + len(block)]].tobytes())
                start += len(block)
