"""Turns the raw images of a data set into one memory-mappable uint8 array file per split, labels, and a meta.json.

Threads decode and resize the images. Preparation of a data set of files resumes after it was killed (`resume`).
"""

import os
import shutil
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np

from ddpm.core.files import InputError, atomic, remove, sha256, write_json, writing
from ddpm.core.params import lookup
from ddpm.core.paths import PREPARED_DIR
from ddpm.core.progress import Progress
from ddpm.data.prepared import META, SPLITS
from ddpm.datasets.image_io import RESIZE_MODES, Decoding, Extent, RangeUnknown, Unreadable, auto_range, decode
from ddpm.datasets.index import Files, Load, Picture
from ddpm.datasets.registry import DATASETS, OPTIONAL_SETTINGS, Images, Source
from ddpm.datasets.resume import PartialArrays, write_header
from ddpm.datasets.settings import PrepareData
from ddpm.datasets.statistics import blocks, statistics

LEFT_OUT = "left_out.txt"
IMAGES = tuple(f"{split}_images.npy" for split in SPLITS)
# Images in progress for each thread: enough that none waits for a slow image, few enough to bound the memory.
AHEAD = 8
MAX_NAMED = 5  # unreadable pictures in a message
Item, Result = TypeVar("Item"), TypeVar("Result")


def prepare(dataset: str, settings: PrepareData, folder: Path = PREPARED_DIR, workers: int = 1, fresh: bool = False) -> dict:
    """Loads a data set, resizes its images, and writes the arrays, and meta.json last. Returns the content of meta.json.

    workers: the number of threads.
    fresh: start from the beginning instead of resuming.
    Raises InputError, with the file or the setting as key, for anything wrong with the images.
    """
    source = lookup(DATASETS, dataset, "dataset").load(settings)
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
            height, width, channels = source.train.images[0].shape
            shape = (settings.image_size or height, settings.image_size or width, channels)
            for split, raw in zip(SPLITS, (source.train, source.test), strict=True):
                _write_images(folder / f"{split}_images.npy", raw.images, shape, settings, f"{dataset} {split}", workers)
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


def _write_images(
    path: Path, images: Images, shape: tuple[int, int, int], settings: PrepareData, name: str, workers: int
) -> None:
    """Writes an array of images one by one."""

    def load(index: int) -> np.ndarray:
        image = resized(images[index], settings)
        if image.shape != shape:
            raise mismatch(image, shape, f"image {index}")
        return image

    # As a stream: writing to a memory map on a full disk kills the process.
    with atomic(path) as temporary, open(temporary, "wb") as file, Progress(name, len(images), "images") as progress:
        write_header(file, len(images), shape)
        for image in in_threads(load, range(len(images)), workers):
            file.write(image.tobytes())
            progress.advance()


def _write_labels(path: Path, labels: np.ndarray) -> None:
    with atomic(path) as temporary:
        np.save(temporary, labels)


def _write_from_files(
    partial: PartialArrays, source: Source, settings: PrepareData, folder: Path, dataset: str, workers: int
) -> tuple[int, dict]:
    """Writes the arrays of a data set of files. Returns the number of those left out, and the ranges of `measure`."""
    how = settings.decoding()
    if settings.value_range is None:
        how = how._replace(scale=_unknown)
    try:
        failed = fill(partial, source.files, settings, how, dataset, workers)
    except RangeUnknown:
        ranges = partial.scaled_by(measure(source.files, how, workers))
        shown = ", ".join(f"{kind} from {low:,} to {high:,}" for kind, (low, high) in ranges.items())
        print(f"{dataset}: images of more than 8 bits are scaled: {shown} (prepare_data.value_range)", flush=True)
        how = how._replace(scale=lambda low, high: tuple(ranges[type(high).__name__]))
        failed = fill(partial, source.files, settings, how, dataset, workers)
    if failed.count and not (settings.skip_bad and partial.shape):
        raise failed.error()
    partial.save()
    kept = [partial.present(split) for split in range(len(SPLITS))]
    labels = [raw.labels[present] for raw, present in zip((source.train, source.test), kept, strict=True)]
    for split, values in zip(SPLITS, labels, strict=True):
        counts = np.bincount(values, minlength=len(source.class_names))
        if not counts.any() or (split == "train" and not counts.all()):
            name = f"class {source.class_names[int(counts.argmin())]!r}" if split == "train" else "the test split"
            raise InputError(f"no image of {name} can be read; repair some of those that {failed.path} names", key=dataset)
    for split, values, present, path in zip(SPLITS, labels, kept, partial.paths, strict=True):
        _publish(path, folder / path.name, present)
        _write_labels(folder / f"{split}_labels.npy", values)
    if failed.count:
        with atomic(folder / LEFT_OUT) as temporary:
            shutil.copyfile(failed.path, temporary)
        print(f"{dataset}: {failed.count:,} unreadable images are left out; {folder / LEFT_OUT} names them", flush=True)
    return failed.count, partial.scaled_by()


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


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yields work(item) of all items in order; threads compute up to AHEAD results each in advance.

    Threads suffice for pictures: Pillow decodes and resizes without holding Python's global lock.
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


def resized(image: np.ndarray, settings: PrepareData) -> np.ndarray:
    """Returns the image in the size of the settings."""
    return RESIZE_MODES[settings.resize_mode](image, settings.image_size) if settings.image_size else image


def mismatch(image: np.ndarray, shape: tuple[int, int, int], name: str) -> InputError:
    """Returns the error for an image whose shape is not that of the first one."""
    height, width, channels = image.shape
    if channels != shape[2]:
        message = f"has {channels} channels, the first image {shape[2]}; convert all with prepare_data.channels: gray or rgb"
    else:
        advice = "give all one size with prepare_data.image_size and prepare_data.resize_mode"
        message = f"is {height}x{width}, the first image {shape[0]}x{shape[1]}; {advice}"
    return InputError(message, key=name)


class FailedImages:
    """Collects the pictures that could not be read: a file names all of them, a message the first ones.

    path: that file.
    total: the number of all pictures.
    """

    def __init__(self, path: Path, total: int):
        self.path, self.total = path, total
        self.count, self.first = 0, []

    def add(self, name: str, reason: str) -> None:
        """Records a picture and why it could not be read."""
        if self.count < MAX_NAMED:
            self.first.append((name, reason))
        with writing(self.path), open(self.path, "a" if self.count else "w", encoding="utf-8") as file:
            file.write(f"{name}: {reason}\n")
        self.count += 1

    def error(self) -> InputError:
        """Returns the error that names them."""
        advice = "repair or remove what cannot be read, or leave it out by prepare_data.skip_bad: true"
        if self.count == 1:
            ((name, reason),) = self.first
            return InputError(f"cannot be read as an image ({reason}); {advice}", key=name)
        named = ", ".join(f"{name} ({reason})" for name, reason in self.first)
        more = f", and {self.count - MAX_NAMED:,} others" if self.count > MAX_NAMED else ""
        counts = f"{self.count:,} of {self.total:,}"
        return InputError(f"{counts} images cannot be read: {named}{more}, all named in {self.path}; {advice}")


def _unknown(low: float, high: float) -> Extent:
    raise RangeUnknown


def measure(files: Files, how: Decoding, workers: int) -> dict[str, list[float]]:
    """Returns the `auto_range` of all pictures of more than 8 bits together, by the type of their values: "int", "float"."""
    extents: dict[str, list[float]] = {}
    lock = threading.Lock()

    def note(low: float, high: float) -> Extent:
        with lock:
            before = extents.get(type(high).__name__, [low, high])
            extents[type(high).__name__] = [min(low, before[0]), max(high, before[1])]
        return low, high

    def read(item: tuple[Picture, Load]) -> None:
        with suppress(Unreadable):
            decode(item[1](), how._replace(scale=note))

    pictures = files.index.pictures(files.store.by_offset)
    with Progress("measuring", sum(files.index.counts), "images") as progress:
        for _ in in_threads(read, files.store.fetch(pictures), workers):
            progress.advance()
    return {kind: list(auto_range(*extent)) for kind, extent in sorted(extents.items())}


def fill(partial: PartialArrays, files: Files, settings: PrepareData, how: Decoding, name: str, workers: int) -> FailedImages:
    """Fills the arrays with the pictures whose rows are missing. Returns those that cannot be read.

    Raises InputError for a picture of another size or number of channels than the first one, RangeUnknown if `how` does.
    """

    def work(item: tuple[Picture, Load]) -> tuple[Picture, np.ndarray | None, str]:
        picture, load = item
        try:
            return picture, resized(decode(load(), how), settings), ""
        except Unreadable as error:
            return picture, None, str(error)

    store, total = files.store, sum(partial.counts)
    failed = FailedImages(partial.unreadable, total)
    missing = store.fetch(partial.missing(files.index.pictures(store.by_offset)))
    with Progress(name, total, "images", partial.written()) as progress:
        for picture, image, reason in in_threads(work, missing, workers):
            if image is None:
                failed.add(store.shown(picture), reason)
            else:
                partial.begin(image.shape)
                if image.shape != partial.shape:
                    raise mismatch(image, partial.shape, store.shown(picture))
                partial.write(picture, image)
            progress.advance()
    return failed


def recorded_settings(dataset: str, settings: PrepareData) -> dict:
    """Returns the settings that decide what is in the arrays, for `made_with` in meta.json."""
    ignored = set(OPTIONAL_SETTINGS) - set(DATASETS[dataset].optional_settings)
    return {"dataset": dataset, **{key: value for key, value in settings.as_written().items() if key not in ignored}}
