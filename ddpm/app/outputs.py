"""What commands write: pictures, arrays and folders of PNGs; checked before the work, written whole or not at all."""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFont

from ddpm.app.views import View, finished
from ddpm.data.batches import to_images
from ddpm.files import InputError, write_npz, write_text, writing
from ddpm.params import lookup
from ddpm.reporting.movies import UPSCALING
from ddpm.reporting.pictures import FONT_SIZE, GAP, captioned, save
from ddpm.runtime import Progress

MOST_PIXELS = 64_000_000
MOST_FILM_PIXELS = 400_000_000
LONGEST_CAPTION = 60
WIDEST_GRID = 20
TINT = (120, 150, 210)


def check_out(path: Path, kinds: Mapping[str, Any]) -> str:
    """The suffix of --out, a key of `kinds`. Raises InputError, before any work, for a path that cannot be written."""
    suffix = path.suffix.lower()
    valid = " or ".join(kind or "none, for a folder" for kind in kinds)
    if "\0" in str(path) or not path.name or path.name.startswith("."):
        raise InputError(f"out: {str(path)!r} is no name of a file; give one that ends in {valid}")
    if suffix not in kinds:
        raise InputError(f"out: {str(path)!r} ends in {suffix or 'no suffix'!r}; valid: {valid}")
    with writing(path):
        if path.is_dir():
            raise InputError(f"out: {path} is a folder that is there already; give another name, or remove it")
        if not suffix and path.exists():
            raise InputError(f"out: {path} is a file that is there already; give another name, or a suffix")
    check_above(path)
    return suffix


def check_above(path: Path) -> None:
    """Raises InputError for a path whose folder, or the nearest above it that is there, cannot be written to."""
    with writing(path):
        above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"out: {path}: {above.name} is a file, not a folder; give another name")
    if not os.access(above, os.W_OK):
        raise InputError(f"out: no permission to write to {above}; give another name, or change its rights")


def check_size(shape: tuple[int, int, int], tile: int, images: int, most: int = MOST_PIXELS) -> None:
    """Raises InputError for a picture, or a film, of more pixels than `most`."""
    longest = max(shape[:2])
    factor = max(1, -(-tile // longest))
    if images * (factor * shape[0] + GAP) * (factor * shape[1] + GAP) > most:
        raise InputError(
            f"tile: {images:,} images of {factor * longest} pixels are too large for one file; choose a smaller --tile, or fewer"
        )


def pictures(name: str, views: Iterator[View], on_view: Callable[[View], object] = lambda view: None) -> np.ndarray:
    """Run some work to its end, showing how far it is: its finished images, uint8 (N, H, W, C).

    Raises InputError as `finished` does.
    """
    images = []
    for view in shown(name, views):
        on_view(view)
        if view.last:
            # Batch by batch: as floats, thousands of images need much memory.
            images.append(to_images(finished(iter([view]))))
    return np.concatenate(images)


def shown(name: str, views: Iterator[View]) -> Iterator[View]:
    """The Views of some work, its progress shown on standard error."""
    first = next(views)
    with Progress(name, first.total, "evaluations") as progress:
        progress.advance()
        yield first
        for view in views:
            progress.advance()
            yield view


class Drawn(NamedTuple):
    """Samples: images uint8 (N, H, W, C), a caption for each, what the network was told, as `orders.tell` has it, and how."""

    images: np.ndarray
    captions: Sequence[str]
    told: torch.Tensor | None
    sampler: str


class Layout(NamedTuple):
    """How samples stand in a picture: images per row (None: by their number) and their least side."""

    columns: int | None
    tile: int


def _write_grid(path: Path, drawn: Drawn, layout: Layout) -> None:
    rows = rows_of(drawn.captions, layout.columns)
    save(path, table([list(drawn.images[row]) for _, row in rows], [caption for caption, _ in rows], [], layout.tile))


def _write_arrays(path: Path, drawn: Drawn, layout: Layout) -> None:
    """As the stages of sampling do, for tools that score samples: arr_0 images, arr_1 classes; captions, if texts were given."""
    classes = {} if drawn.told is None or drawn.told.ndim > 1 else {"arr_1": drawn.told.cpu().numpy()}
    captions = {"captions": np.asarray(drawn.captions)} if drawn.told is not None and not classes else {}
    write_npz(path, {"arr_0": drawn.images, **classes, **captions, "sampler": np.array([drawn.sampler])})


def _write_folder(path: Path, drawn: Drawn, layout: Layout) -> None:
    """00000.png, 00001.png, ... as they are, and labels.csv beside them if the network was told something."""
    with _atomic_folder(path) as folder:
        for k, image in enumerate(drawn.images):
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(folder / f"{k:05d}.png")
        if any(drawn.captions):
            lines = (f'{k:05d}.png,"{caption.replace(chr(34), 2 * chr(34))}"' for k, caption in enumerate(drawn.captions))
            write_text(folder / "labels.csv", "\n".join(["file,label", *lines]) + "\n")


SAMPLES: dict[str, Callable[[Path, Drawn, Layout], None]] = {".png": _write_grid, ".npz": _write_arrays, "": _write_folder}


@contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder, renamed to `path` if the block succeeds, removed if not."""
    temporary = path.with_name(f".{path.name}.partial{os.getpid()}")
    try:
        with writing(path):
            temporary.mkdir(parents=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def rows_of(captions: Sequence[str], columns: int | None) -> list[tuple[str, list[int]]]:
    """Rows of a grid: (caption, which images), those of one caption together, `columns` in a row (None: by their number)."""
    groups: dict[str, list[int]] = {}
    for k, caption in enumerate(captions):
        groups.setdefault(caption, []).append(k)
    longest = max(map(len, groups.values()))
    alone = len(groups) == 1
    columns = columns or min(WIDEST_GRID, math.ceil(math.sqrt(longest)) if alone and longest > 10 else longest)
    return [
        (caption if start == 0 else "", group[start : start + columns])
        for caption, group in groups.items()
        for start in range(0, len(group), columns)
    ]


def table(
    tiles: Sequence[Sequence[np.ndarray]], rows: Sequence[str], columns: Sequence[str], tile: int, upscaling: str = "nearest"
) -> Image.Image:
    """`pictures.captioned`, its captions each in one line: of bounded length before rows, as wide as an image above columns."""
    enlarge = lookup(UPSCALING, upscaling, "upscaling")
    width = enlarge(tiles[0][0], tile).width
    return captioned(tiles, [short(text) for text in rows], [fitting(text, width) for text in columns], tile, enlarge)


def write_table(
    path: Path, tiles: Sequence[Sequence[np.ndarray]], rows: Sequence[str], columns: Sequence[str], tile: int
) -> None:
    """Write `table` as a PNG."""
    save(path, table(tiles, rows, columns, tile))


def write_beside(
    path: Path,
    heads: Sequence[tuple[str, np.ndarray]],
    rows: Sequence[tuple[str, np.ndarray]],
    columns: int | None,
    tile: int,
) -> None:
    """Write captioned rows of images (N, H, W, C), `columns` beside each other, with the captioned `heads` before the first."""
    columns = columns or WIDEST_GRID
    paper = np.full((*heads[0][1].shape[:2], 3), 255, np.uint8)
    tiles, captions = [], []
    for caption, images in rows:
        for start in range(0, len(images), columns):
            before = [image if not tiles else paper for _, image in heads]
            tiles.append([*before, *images[start : start + columns]])
            captions.append(caption if start == 0 else "")
    write_table(path, tiles, captions, [caption for caption, _ in heads], tile)


def tinted(image: np.ndarray, known: torch.Tensor) -> np.ndarray:
    """An image (H, W, C) as RGB, in one colour where the mask (1, 1, H, W) is 0."""
    return np.where(known[0, 0].numpy().astype(bool)[..., None], image, np.uint8(TINT))


def short(text: str, most: int = LONGEST_CAPTION) -> str:
    """A text in one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."


def fitting(text: str, width: int) -> str:
    """A text in one line that is no wider in a caption than so many pixels, but for its first letter."""
    line, width_of = short(text), ImageFont.load_default(FONT_SIZE).getlength
    shorter = (line[:end].rstrip() + "..." for end in range(len(line) - 1, 0, -1))
    return next((found for found in (line, *shorter, line[:2]) if width_of(found) <= width), line[:1])


class Clock:
    """Seconds since it was made, as text: f"{clock}"."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def __str__(self) -> str:
        return f"{time.perf_counter() - self.start:.1f} s"
