"""Raw images -> one memory-mappable uint8 array file per split, labels, and a meta.json.

Reads, fits and checks images in threads, and fills arrays with them.

A stratified test split: the one that scikit-learn's train_test_split draws, without its lists of a million numbers."""

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import numpy as np

from ddpm.core.files import InputError, atomic, remove, sha256, write_json, writing
from ddpm.core.params import lookup
from ddpm.core.paths import PREPARED_DIR
from ddpm.core.progress import Progress
from ddpm.data.prepared import META, SPLITS
from ddpm.datasets.image_io import RESIZE_MODES, Unreadable, decode
from ddpm.datasets.index import Files, Load, Picture
from ddpm.datasets.registry import DATASETS, DatasetName, Images, Raw, Source
from ddpm.datasets.resume import PartialArrays
from ddpm.datasets.settings import SPECIAL, PrepareData

LEFT_OUT = "left_out.txt"
IMAGES = tuple(f"{split}_images.npy" for split in SPLITS)
BLOCK = 16 << 20  # bytes of an array that are read at once


def prepare(dataset: str, settings: PrepareData, folder: Path = PREPARED_DIR, workers: int = 1, fresh: bool = False) -> dict:
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
        unfinished = PartialArrays(source.files, IMAGES, same, fresh)
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
        "required_accuracy": DATASETS[dataset].required_accuracy,
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


def _from_files(
    unfinished: PartialArrays, source: Source, settings: PrepareData, folder: Path, dataset: str, workers: int
) -> int:
    """Write the arrays of a data set of files; returns how many of its pictures were left out."""
    unread = fill(unfinished, source.files, settings, dataset, workers)
    if unread.count and not (settings.skip_bad and unfinished.shape):
        raise unread.error()
    unfinished.save()
    kept = [unfinished.present(split) for split in range(len(SPLITS))]
    for split, raw, present in zip(SPLITS, (source.train, source.test), kept, strict=True):
        there = np.bincount(raw.labels if present.all() else raw.labels[present], minlength=len(source.class_names))
        if not there.any() or (split == "train" and not there.all()):
            name = f"class {source.class_names[int(there.argmin())]!r}" if split == "train" else "the test split"
            raise InputError(f"no image of {name} can be read; repair some of those that {unread.path} names", key=dataset)
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


# Images under way for each thread: enough that none waits for a slow one, few enough to bound the memory.
AHEAD = 8
NAMED = 5  # unreadable pictures in a message
Item, Result = TypeVar("Item"), TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """work(item) of all items, in order; a few are computed ahead, by threads.

    Threads suffice for pictures: Pillow decodes and resizes outside Python's lock.
    """
    waiting: deque = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def fitted(image: np.ndarray, settings: PrepareData) -> np.ndarray:
    """The image in the size of the settings."""
    return RESIZE_MODES[settings.resize_mode](image, settings.image_size) if settings.image_size else image


def mismatch(image: np.ndarray, shape: tuple[int, int, int], name: str) -> InputError:
    """The error for an image that has not the shape of the first one."""
    if image.shape[2] != shape[2]:
        return InputError(
            f"has {image.shape[2]} channels, the first image {shape[2]}; convert all with prepare_data.channels: gray or rgb",
            key=name,
        )
    return InputError(
        f"is {image.shape[0]}x{image.shape[1]}, the first image {shape[0]}x{shape[1]}; "
        "give all one size with prepare_data.image_size and prepare_data.resize_mode",
        key=name,
    )


class FailedImages:
    """Pictures that could not be read: all are named in a file, the first ones kept for a message."""

    def __init__(self, path: Path, total: int):
        self.path, self.total = path, total
        self.count, self.first = 0, []

    def add(self, name: str, reason: str) -> None:
        if self.count < NAMED:
            self.first.append((name, reason))
        with writing(self.path), open(self.path, "a" if self.count else "w", encoding="utf-8") as file:
            file.write(f"{name}: {reason}\n")
        self.count += 1

    def error(self) -> InputError:
        """The error of one line that says so."""
        advice = "prepare_data.skip_bad: true leaves {} out; or repair or remove {}"
        if self.count == 1:
            ((name, reason),) = self.first
            return InputError(f"cannot be read as an image ({reason}); {advice.format('it', 'it')}", key=name)
        named = ", ".join(f"{name} ({reason})" for name, reason in self.first)
        more = f", and {self.count - NAMED:,} others," if self.count > NAMED else ","
        return InputError(
            f"{self.count:,} of {self.total:,} images cannot be read: {named}{more} all named in {self.path}; "
            f"{advice.format('them', 'them')}"
        )


def fill(unfinished: PartialArrays, files: Files, settings: PrepareData, name: str, workers: int) -> FailedImages:
    """Fill the arrays with all pictures that they still lack; returns those that cannot be read.

    Raises InputError for a picture of another size or number of channels than the first one.
    """

    def work(item: tuple[Picture, Load]) -> tuple[Picture, np.ndarray | None, str]:
        picture, load = item
        try:
            return picture, fitted(decode(load(), files.mode), settings), ""
        except Unreadable as error:
            return picture, None, str(error)

    store, total = files.store, sum(unfinished.counts)
    unread = FailedImages(unfinished.list, total)
    missing = store.fetch(unfinished.missing(files.listing.pictures(store.in_place_order)))
    with Progress(name, total, "images", unfinished.written()) as progress:
        for picture, image, reason in in_threads(work, missing, workers):
            if image is None:
                unread.add(store.shown(picture), reason)
            else:
                unfinished.begin(image.shape)
                if image.shape != unfinished.shape:
                    raise mismatch(image, unfinished.shape, store.shown(picture))
                unfinished.write(picture, image)
            progress.advance()
    return unread


def made_with(dataset: DatasetName, settings: PrepareData) -> dict:
    """The settings that decide what is in the arrays."""
    ignored = {key for key in SPECIAL if key not in DATASETS[dataset].reads}
    return {"dataset": dataset, **{key: value for key, value in settings.as_written().items() if key not in ignored}}
