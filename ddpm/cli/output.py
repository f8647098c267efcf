"""What commands write: pictures, arrays and folders of PNGs; checked before the work, written whole or not at all.

Lines for people, on standard output or standard error."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from PIL import Image

from ddpm.core.files import InputError, atomic_folder, check_writable, write_npz, write_text, writing
from ddpm.plots.image_grid import GAP, MAX_GRID_COLUMNS, save, save_grid, table

MAX_PIXELS = 64_000_000
MAX_FILM_PIXELS = 400_000_000


def check_out(path: Path, kinds: Mapping[str, Any]) -> str:
    """The suffix of --out, a key of `kinds`. Raises InputError, before any work, for a path that cannot be written."""
    suffix = path.suffix.lower()
    valid = " or ".join(kind or "none, for a folder" for kind in kinds)
    if "\0" in str(path) or not path.name or path.name.startswith("."):
        raise InputError(f"{str(path)!r} is no name of a file; give one that ends in {valid}", key="out")
    if suffix not in kinds:
        raise InputError(f"{str(path)!r} ends in {suffix or 'no suffix'!r}; valid: {valid}", key="out")
    with writing(path):
        if path.is_dir():
            raise InputError(f"{path} is a folder that is there already; give another name, or remove it", key="out")
        if not suffix and path.exists():
            raise InputError(f"{path} is a file that is there already; give another name, or a suffix", key="out")
    check_writable(path)
    return suffix


def check_size(shape: tuple[int, int, int], tile: int, images: int, most: int = MAX_PIXELS) -> None:
    """Raises InputError for a picture, or a film, of more pixels than `most`."""
    longest = max(shape[:2])
    factor = max(1, -(-tile // longest))
    if images * (factor * shape[0] + GAP) * (factor * shape[1] + GAP) > most:
        raise InputError(
            f"{images:,} images of {factor * longest} pixels are too large for one file; choose a smaller --tile, or fewer",
            key="tile",
        )


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
    save_grid(path, drawn.images, drawn.captions, layout.columns, layout.tile)


def _write_arrays(path: Path, drawn: Drawn, layout: Layout) -> None:
    """As the stages of sampling do, for tools that score samples: arr_0 images, arr_1 classes; captions, if texts were given."""
    classes = {} if drawn.told is None or drawn.told.ndim > 1 else {"arr_1": drawn.told.cpu().numpy()}
    captions = {"captions": np.asarray(drawn.captions)} if drawn.told is not None and not classes else {}
    write_npz(path, {"arr_0": drawn.images, **classes, **captions, "sampler": np.array([drawn.sampler])})


def _write_folder(path: Path, drawn: Drawn, layout: Layout) -> None:
    """00000.png, 00001.png, ... as they are, and labels.csv beside them if the network was told something."""
    with atomic_folder(path) as folder:
        for k, image in enumerate(drawn.images):
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(folder / f"{k:05d}.png")
        if any(drawn.captions):
            lines = (f'{k:05d}.png,"{caption.replace(chr(34), 2 * chr(34))}"' for k, caption in enumerate(drawn.captions))
            write_text(folder / "labels.csv", "\n".join(["file,label", *lines]) + "\n")


SAMPLES: dict[str, Callable[[Path, Drawn, Layout], None]] = {".png": _write_grid, ".npz": _write_arrays, "": _write_folder}


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
    columns = columns or MAX_GRID_COLUMNS
    paper = np.full((*heads[0][1].shape[:2], 3), 255, np.uint8)
    tiles, captions = [], []
    for caption, images in rows:
        for start in range(0, len(images), columns):
            before = [image if not tiles else paper for _, image in heads]
            tiles.append([*before, *images[start : start + columns]])
            captions.append(caption if start == 0 else "")
    write_table(path, tiles, captions, [caption for caption, _ in heads], tile)


class Clock:
    """Seconds since it was made, as text: f"{clock}"."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def __str__(self) -> str:
        return f"{time.perf_counter() - self.start:.1f} s"


def say(text: str, stream: TextIO | None = None) -> None:
    """Print, whatever characters a file's name has that the terminal has not."""
    stream = stream or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
