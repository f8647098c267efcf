"""Output files of the commands: their size, and writers of images, arrays and folders of PNG files."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ddpm.core.files import InputError, atomic_folder, print_line, write_npz, write_text
from ddpm.plots.image_grid import GAP, MAX_GRID_COLUMNS, save, save_grid, table

MAX_PIXELS = 64_000_000
MAX_FILM_PIXELS = 400_000_000


def check_size(shape: tuple[int, int, int], tile: int, images: int, most: int = MAX_PIXELS) -> None:
    """Raises InputError if so many images (H, W, C), enlarged to `tile` pixels, have more than `most` pixels together."""
    longest = max(shape[:2])
    factor = max(1, -(-tile // longest))
    if images * (factor * shape[0] + GAP) * (factor * shape[1] + GAP) > most:
        raise InputError(
            f"{images:,} images of {factor * longest} pixels are too large for one file; use a smaller --tile, or fewer images",
            key="tile",
        )


class OutputSamples(NamedTuple):
    """Samples to write.

    images: uint8 (N, H, W, C).
    captions: a class name or text for each image, or empty.
    labels: the conditioning, class ids (N,) or word ids (N, L), or None.
    sampler: the label of the sampler.
    """

    images: np.ndarray
    captions: Sequence[str]
    labels: torch.Tensor | None
    sampler: str


def _write_grid(path: Path, samples: OutputSamples, columns: int | None, tile: int) -> None:
    save_grid(path, samples.images, samples.captions, columns, tile)


def _write_arrays(path: Path, samples: OutputSamples, *_: object) -> None:
    """Writes the .npz layout of the sampling stages: arr_0 images, arr_1 class ids or captions, sampler."""
    arrays = {"arr_0": samples.images}
    if samples.labels is not None:
        is_text = samples.labels.ndim > 1
        arrays |= {"captions": np.asarray(samples.captions)} if is_text else {"arr_1": samples.labels.cpu().numpy()}
    write_npz(path, {**arrays, "sampler": np.array([samples.sampler])})


def _write_folder(path: Path, samples: OutputSamples, *_: object) -> None:
    """Writes 00000.png, 00001.png, ... at their own size, and labels.csv if the images have captions."""
    with atomic_folder(path) as folder:
        for k, image in enumerate(samples.images):
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(folder / f"{k:05d}.png")
        if any(samples.captions):
            lines = (f'{k:05d}.png,"{caption.replace(chr(34), 2 * chr(34))}"' for k, caption in enumerate(samples.captions))
            write_text(folder / "labels.csv", "\n".join(["file,label", *lines]) + "\n")


# By the suffix of --out. Arguments: path, samples, columns and tile of a grid.
WRITERS: dict[str, Callable[[Path, OutputSamples, int | None, int], None]] = {
    ".png": _write_grid,
    ".npz": _write_arrays,
    "": _write_folder,
}


def write_rows(
    path: Path, first: Sequence[tuple[str, np.ndarray]], rows: Sequence[tuple[str, np.ndarray]], columns: int | None, tile: int
) -> None:
    """Writes a PNG of captioned rows of images.

    first: captions and images (H, W, C) in front of the first row.
    rows: captions and images (N, H, W, C), which are wrapped after `columns` images.
    """
    columns = columns or MAX_GRID_COLUMNS
    blank = np.full((*first[0][1].shape[:2], 3), 255, np.uint8)
    tiles, captions = [], []
    for caption, images in rows:
        for start in range(0, len(images), columns):
            tiles.append([*(blank if tiles else image for _, image in first), *images[start : start + columns]])
            captions.append(caption if start == 0 else "")
    save(path, table(tiles, captions, [caption for caption, _ in first], tile))


class Clock:
    """Measures the seconds since it was made; str(clock) shows them."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def __str__(self) -> str:
        return f"{time.perf_counter() - self.start:.1f} s"

    def report(self, path: Path, what: str) -> None:
        """Prints the last line of a command: what it wrote to a path, and the seconds."""
        print_line(f"wrote {path}: {what}, {self}")
