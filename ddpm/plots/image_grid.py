"""Draws uint8 images (..., H, W, C) as labelled grids and denoising strips."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ddpm.core.files import atomic
from ddpm.core.params import lookup
from ddpm.plots.fonts import FONT_SIZE, drawable, font_of

GAP = 3
MARGIN = 8
INK, PAPER = (40, 40, 40), (255, 255, 255)
MAX_CLASSES = 10
STRIP_IMAGES, STRIP_FRAMES = 3, 10
MAX_CAPTION = 60  # characters
MAX_GRID_COLUMNS = 20
TINT = (120, 150, 210)


def to_picture(image: np.ndarray, tile: int) -> Image.Image:
    """Returns an image (H, W, 1 or 3) as RGB, enlarged by a whole factor with sharp pixels to a side of at least `tile`."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    factor = max(1, -(-tile // max(image.shape[:2])))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def captioned(
    tiles: Sequence[Sequence[np.ndarray]],
    rows: Sequence[str],
    columns: Sequence[str],
    tile: int,
    enlarge: Callable[[np.ndarray, int], Image.Image] = to_picture,
) -> Image.Image:
    """Returns a table of images, with a caption before each row and above each column ("" for none), `drawable` and `short`.

    tile: smallest side of an image, in pixels. enlarge: function (image, tile) -> RGB picture, see UPSCALING.
    """
    rows, columns = ([short(drawable(text)) for text in texts] for texts in (rows, columns))
    pictures = [[enlarge(image, tile) for image in row] for row in tiles]
    width, height = pictures[0][0].size
    left = max((int(font_of(text).getlength(text)) + MARGIN for text in rows if text), default=0) + MARGIN
    top = MARGIN + (FONT_SIZE + MARGIN if any(columns) else 0)
    across = max(len(row) for row in pictures)
    canvas = Image.new("RGB", (left + across * (width + GAP) + MARGIN, top + len(pictures) * (height + GAP) + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    for j, text in enumerate(columns):
        draw.text((left + j * (width + GAP) + width / 2, MARGIN), text, INK, font_of(text), anchor="ma")
    for i, (text, row) in enumerate(zip(rows, pictures, strict=True)):
        y = top + i * (height + GAP)
        draw.text((MARGIN, y + height / 2), text, INK, font_of(text), anchor="lm")
        for j, picture in enumerate(row):
            canvas.paste(picture, (left + j * (width + GAP), y))
    return canvas


def save(path: Path, picture: Image.Image) -> None:
    """Writes a PNG atomically; a picture without colour is stored as gray."""
    array = np.asarray(picture)
    gray = bool((array[..., 0] == array[..., 1]).all() and (array[..., 1] == array[..., 2]).all())
    with atomic(path) as temporary:
        (picture.convert("L") if gray else picture).save(temporary, optimize=True)


def class_grid(path: Path, images: np.ndarray, labels: np.ndarray, names: Sequence[str], columns: int, tile: int) -> None:
    """Writes a row of up to `columns` images for each of the first 10 classes, with the name of the class."""
    rows = {name: list(images[np.flatnonzero(labels == label)[:columns]]) for label, name in enumerate(names[:MAX_CLASSES])}
    rows = {name: row for name, row in rows.items() if row}
    save(path, captioned(list(rows.values()), list(rows), [], tile))


def plain_grid(path: Path, images: np.ndarray, columns: int, tile: int) -> None:
    """Writes images (N, H, W, C) in rows of `columns`, without captions."""
    rows = [list(images[i : i + columns]) for i in range(0, len(images), columns)]
    save(path, captioned(rows, [""] * len(rows), [], tile))


def neighbours(path: Path, pairs: np.ndarray, ratios: np.ndarray, tile: int) -> None:
    """Writes samples above their nearest training images, with the distance ratio above both.

    pairs: (2, K, H, W, C), the samples first. ratios: (K,).
    """
    save(path, captioned([list(pairs[0]), list(pairs[1])], ["sample", "nearest"], [f"{ratio:.2f}" for ratio in ratios], tile))


def denoising_strip(path: Path, x: np.ndarray, x0: np.ndarray, levels: np.ndarray, tile: int) -> None:
    """Writes x_t above the prediction of x0 for some samples, from noise (left) to image. x, x0: (F, K, H, W, C)."""
    chosen = np.unique(np.linspace(0, len(levels) - 1, STRIP_FRAMES).round().astype(int))
    rows = []
    for k in range(min(STRIP_IMAGES, x.shape[1])):
        # There is no prediction at the first level.
        rows += [[x[f, k] for f in chosen], [x0[f, k] if f else np.full_like(x[f, k], 255) for f in chosen]]
    save(path, captioned(rows, ["x_t", "x0"] * (len(rows) // 2), [f"t={levels[f]:.4g}" for f in chosen], tile))


def rows_of(captions: Sequence[str], columns: int | None) -> list[tuple[str, list[int]]]:
    """Returns the rows of a grid, (caption, indices of images), grouped by caption, with `columns` in a row (None: automatic)."""
    groups: dict[str, list[int]] = {}
    for k, caption in enumerate(captions):
        groups.setdefault(caption, []).append(k)
    longest = max(map(len, groups.values()))
    alone = len(groups) == 1
    columns = columns or min(MAX_GRID_COLUMNS, math.ceil(math.sqrt(longest)) if alone and longest > 10 else longest)
    return [
        (caption if start == 0 else "", group[start : start + columns])
        for caption, group in groups.items()
        for start in range(0, len(group), columns)
    ]


def table(
    tiles: Sequence[Sequence[np.ndarray]], rows: Sequence[str], columns: Sequence[str], tile: int, upscaling: str = "nearest"
) -> Image.Image:
    """Returns `captioned` with captions above columns that are at most as wide as an image."""
    enlarge = lookup(UPSCALING, upscaling, "upscaling")
    width = enlarge(tiles[0][0], tile).width
    return captioned(tiles, rows, [fitting(text, width) for text in columns], tile, enlarge)


def tinted(image: np.ndarray, known: torch.Tensor) -> np.ndarray:
    """Returns an image (H, W, C) as RGB, with the colour TINT where the mask (1, 1, H, W) is 0."""
    return np.where(known[0, 0].numpy().astype(bool)[..., None], image, np.uint8(TINT))


def short(text: str, length: int = MAX_CAPTION) -> str:
    """Returns a text in one line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."


def fitting(text: str, width: int) -> str:
    """Returns a text in one line, shortened to at most `width` pixels, but never to less than its first letter."""
    line = short(drawable(text))
    shorter = (line[:end].rstrip() + "..." for end in range(len(line) - 1, 0, -1))
    return next((text for text in (line, *shorter, line[:2]) if font_of(text).getlength(text) <= width), line[:1])


def smooth(image: np.ndarray, tile: int) -> Image.Image:
    """Returns an image (H, W, 1 or 3) as RGB, enlarged (bicubic) to a longer side of exactly `tile`; larger ones unchanged."""
    picture, factor = to_picture(image, 1), max(1.0, tile / max(image.shape[:2]))
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BICUBIC)


UPSCALING: dict[str, Callable[[np.ndarray, int], Image.Image]] = {"nearest": to_picture, "smooth": smooth}


def save_grid(path: Path, images: np.ndarray, captions: Sequence[str], columns: int | None, tile: int) -> None:
    """Writes images (N, H, W, C) as a PNG, with separate rows for each caption (`rows_of`)."""
    rows = rows_of(captions, columns)
    save(path, table([list(images[row]) for _, row in rows], [caption for caption, _ in rows], [], tile))
