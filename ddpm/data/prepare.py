"""Raw images -> one memory-mappable uint8 array file per split, labels, and a meta.json."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ddpm.data.datasets import DATASETS, Images, Raw
from ddpm.data.fit import FITS
from ddpm.data.prepared import FOLDER, META, SPLITS, PrepareData, made_with
from ddpm.files import InputError, atomic, remove, sha256, write_json
from ddpm.params import lookup
from ddpm.runtime import Progress


def prepare(dataset: str, settings: PrepareData, folder: Path = FOLDER, workers: int = 1) -> dict:
    """Load the data set, fit its images to one size, write the arrays, and meta.json last. Returns the content of meta.json.

    `workers` threads decode pictures. Raises InputError, naming the file or the setting, for anything wrong with the images.
    """
    source = lookup(DATASETS, dataset, "dataset").load(settings)
    shape = _common_shape(source.train.images, settings)
    # An old meta.json must not vouch for new arrays if this is interrupted.
    remove(folder / META)
    meta = {
        "dataset": dataset,
        "made_with": made_with(dataset, settings),
        "counts": {},
        "shape": list(shape),
        "class_names": list(source.class_names),
        "mean": None,
        "sha256": {},
    }
    for split, raw in zip(SPLITS, (source.train, source.test), strict=True):
        total = _write_images(folder / f"{split}_images.npy", raw, shape, settings, f"{dataset} {split}", workers)
        with atomic(folder / f"{split}_labels.npy") as temporary:
            np.save(temporary, raw.labels)
        meta["counts"][split] = len(raw.images)
        if split == "train":
            meta["mean"] = [round(float(value) / 255, 6) for value in total / (len(raw.images) * shape[0] * shape[1])]
        for kind in ("images", "labels"):
            meta["sha256"][f"{split}_{kind}"] = sha256(folder / f"{split}_{kind}.npy")
    write_json(folder / META, meta)
    return meta


def _common_shape(images: Images, settings: PrepareData) -> tuple[int, int, int]:
    height, width, channels = images[0].shape
    return (settings.image_size or height, settings.image_size or width, channels)


def _write_images(
    path: Path, raw: Raw, shape: tuple[int, int, int], settings: PrepareData, name: str, workers: int
) -> np.ndarray:
    """Write one split image by image, so that memory holds few; returns the sum of each channel, float64 (C,)."""
    total = np.zeros(shape[2])
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(raw.images), *shape)}
    # Written as a stream, since writing to mapped memory on a full disk kills the process.
    with atomic(path) as temporary, open(temporary, "wb") as file, Progress(name, len(raw.images), "images") as progress:
        np.lib.format.write_array_header_1_0(file, header)
        for image in _fitted(raw.images, shape, settings, workers):
            file.write(image.tobytes())
            total += image.sum((0, 1), dtype=np.float64)
            progress.advance()
    return total


def _fitted(images: Images, shape: tuple[int, int, int], settings: PrepareData, workers: int) -> Iterator[np.ndarray]:
    """All images in order, each uint8 of that shape; raises InputError naming the first that has another."""

    def load(index: int) -> np.ndarray:
        image = images[index]
        if image.shape[2] != shape[2]:
            raise InputError(
                f"{_describe(images, index)}: has {image.shape[2]} channels, the first image {shape[2]}; "
                "convert all with prepare_data.channels: gray or rgb"
            )
        image = FITS[settings.fit](image, settings.image_size) if settings.image_size else image
        if image.shape != shape:
            raise InputError(
                f"{_describe(images, index)}: is {image.shape[0]}x{image.shape[1]}, the first image {shape[0]}x{shape[1]}; "
                "give all one size with prepare_data.image_size and prepare_data.fit"
            )
        return image

    # Threads suffice: Pillow decodes and resizes outside Python's lock. Blocks bound what waits in memory.
    block = 16 * workers
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(images), block):
            yield from pool.map(load, range(start, min(start + block, len(images))))


def _describe(images: Images, index: int) -> str:
    return str(images.paths[index]) if hasattr(images, "paths") else f"image {index}"
