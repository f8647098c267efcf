"""Pictures made of images: labelled grids, denoising strips and GIFs. All take uint8 images (..., H, W, C)."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ddpm.core.files import atomic
from ddpm.core.params import lookup

GAP = 3
MARGIN = 8
FONT_SIZE = 14
INK, PAPER = (40, 40, 40), (255, 255, 255)
FIRST_PER_CLASS, FIRST_CLASSES = 10, 10
HOLD_MS = 2_000  # a GIF rests on its last frame


def to_picture(image: np.ndarray, tile: int) -> Image.Image:
    """An image (H, W, 1 or 3) as RGB, enlarged by a whole factor, pixels kept sharp, until its side is at least `tile`."""
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
    """A table of images with a caption before each row and above each column (empty strings for none)."""
    font = ImageFont.load_default(FONT_SIZE)
    pictures = [[enlarge(image, tile) for image in row] for row in tiles]
    width, height = pictures[0][0].size
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = max((int(measure.textlength(text, font)) + MARGIN for text in rows if text), default=0) + MARGIN
    top = MARGIN + (FONT_SIZE + MARGIN if any(columns) else 0)
    across = max(len(row) for row in pictures)
    canvas = Image.new("RGB", (left + across * (width + GAP) + MARGIN, top + len(pictures) * (height + GAP) + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    for j, text in enumerate(columns):
        draw.text((left + j * (width + GAP) + width / 2, MARGIN), text, INK, font, anchor="ma")
    for i, (text, row) in enumerate(zip(rows, pictures, strict=True)):
        y = top + i * (height + GAP)
        draw.text((MARGIN, y + height / 2), text, INK, font, anchor="lm")
        for j, picture in enumerate(row):
            canvas.paste(picture, (left + j * (width + GAP), y))
    return canvas


def save(path: Path, picture: Image.Image) -> None:
    """Write a PNG atomically; a picture without colour is stored as gray."""
    array = np.asarray(picture)
    gray = bool((array[..., 0] == array[..., 1]).all() and (array[..., 1] == array[..., 2]).all())
    with atomic(path) as temporary:
        (picture.convert("L") if gray else picture).save(temporary, optimize=True)


def class_grid(
    path: Path, images: np.ndarray, labels: np.ndarray, names: Sequence[str], columns: int, tile: int, most: int = 10
) -> None:
    """A row of up to `columns` images for each of the first `most` classes, the class name before it."""
    rows, captions = [], []
    for label, name in list(enumerate(names))[:most]:
        chosen = images[np.flatnonzero(labels == label)[:columns]]
        if len(chosen):
            rows.append(list(chosen))
            captions.append(name)
    save(path, captioned(rows, captions, [], tile))


def first_images(path: Path, images: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> None:
    """The first training images of the first classes."""
    class_grid(path, images, labels, names, FIRST_PER_CLASS, 40, FIRST_CLASSES)


def plain_grid(path: Path, images: np.ndarray, columns: int, tile: int) -> None:
    """Images (N, H, W, C) in rows of `columns`, without captions."""
    rows = [list(images[i : i + columns]) for i in range(0, len(images), columns)]
    save(path, captioned(rows, [""] * len(rows), [], tile))


def neighbours(path: Path, pairs: np.ndarray, ratios: np.ndarray, tile: int) -> None:
    """Samples above the training images that lie closest to them, and their distance ratio above both.

    pairs: (2, K, H, W, C), the samples first; ratios: (K,).
    """
    save(path, captioned([list(pairs[0]), list(pairs[1])], ["sample", "nearest"], [f"{ratio:.2f}" for ratio in ratios], tile))


def denoising_strip(
    path: Path, x: np.ndarray, x0: np.ndarray, levels: np.ndarray, tile: int, samples: int = 3, frames: int = 10
) -> None:
    """x_t above the prediction of x0 for some samples, over levels from noise (left) to image; arrays (F, K, H, W, C)."""
    chosen = np.unique(np.linspace(0, len(levels) - 1, frames).round().astype(int))
    rows, captions = [], []
    for k in range(min(samples, x.shape[1])):
        # At the first level there is no prediction yet.
        rows += [[x[f, k] for f in chosen], [x0[f, k] if f else np.full_like(x[f, k], 255) for f in chosen]]
        captions += ["x_t", "x0"]
    save(path, captioned(rows, captions, [f"t={levels[f]:.4g}" for f in chosen], tile))


def save_gif(path: Path, frames: Sequence[Image.Image], milliseconds: Sequence[int]) -> None:
    """Write RGB frames as a GIF that repeats for ever, atomically; a frame's duration is a multiple of 10 ms.

    Films without colour keep all their grays; of others, each frame has its own 256 colours. Equal frames that follow each other
    are stored as one of their durations' sum.
    """
    colour = any(np.ptp(np.asarray(frame), axis=-1).any() for frame in frames)
    frames = [frame.quantize(256) if colour else frame.convert("L") for frame in frames]
    with atomic(path) as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=list(milliseconds), loop=0)


def denoising_gif(path: Path, x: np.ndarray, x0: np.ndarray, levels: np.ndarray, tile: int, frame_ms: int) -> None:
    """All trajectories side by side, x_t above the prediction of x0, one frame per kept level, resting on the last."""
    frames = []
    for f in range(1, len(levels)):
        columns = [f"t = {levels[f]:.4g}"] + [""] * (x.shape[1] - 1)
        frames.append(captioned([list(x[f]), list(x0[f])], ["x_t", "x0"], columns, tile))
    save_gif(path, frames, [frame_ms] * (len(frames) - 1) + [HOLD_MS])


MAX_CAPTION = 60
MAX_GRID_COLUMNS = 20
TINT = (120, 150, 210)


def rows_of(captions: Sequence[str], columns: int | None) -> list[tuple[str, list[int]]]:
    """Rows of a grid: (caption, which images), those of one caption together, `columns` in a row (None: by their number)."""
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
    """`pictures.captioned`, its captions each in one line: of bounded length before rows, as wide as an image above columns."""
    enlarge = lookup(UPSCALING, upscaling, "upscaling")
    width = enlarge(tiles[0][0], tile).width
    return captioned(tiles, [short(text) for text in rows], [fitting(text, width) for text in columns], tile, enlarge)


def tinted(image: np.ndarray, known: torch.Tensor) -> np.ndarray:
    """An image (H, W, C) as RGB, in one colour where the mask (1, 1, H, W) is 0."""
    return np.where(known[0, 0].numpy().astype(bool)[..., None], image, np.uint8(TINT))


def short(text: str, most: int = MAX_CAPTION) -> str:
    """A text in one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."


def fitting(text: str, width: int) -> str:
    """A text in one line that is no wider in a caption than so many pixels, but for its first letter."""
    line, width_of = short(text), ImageFont.load_default(FONT_SIZE).getlength
    shorter = (line[:end].rstrip() + "..." for end in range(len(line) - 1, 0, -1))
    return next((found for found in (line, *shorter, line[:2]) if width_of(found) <= width), line[:1])


def smooth(image: np.ndarray, tile: int) -> Image.Image:
    """An image (H, W, 1 or 3) as RGB, its longer side enlarged to exactly `tile` by a bicubic; larger ones stay as they are."""
    picture, factor = to_picture(image, 1), max(1.0, tile / max(image.shape[:2]))
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BICUBIC)


UPSCALING: dict[str, Callable[[np.ndarray, int], Image.Image]] = {"nearest": to_picture, "smooth": smooth}


def save_grid(path: Path, images: np.ndarray, captions: Sequence[str], columns: int | None, tile: int) -> None:
    """Write images (N, H, W, C) as a PNG, those of one caption in rows of their own (`rows_of`)."""
    rows = rows_of(captions, columns)
    save(path, table([list(images[row]) for _, row in rows], [caption for caption, _ in rows], [], tile))
