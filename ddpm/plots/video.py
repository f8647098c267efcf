"""Writes animations as GIF or MP4, and draws the frames of denoising, interpolation and training.

All functions take uint8 images (..., H, W, C) with C = 1 (gray) or 3. `tile` is the smallest side of an image in a frame, in
pixels.
"""

import math
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ddpm.core.files import InputError, atomic
from ddpm.core.params import lookup
from ddpm.plots.fonts import font_of
from ddpm.plots.image_grid import INK, MARGIN, PAPER, UPSCALING, captioned

Frame = TypeVar("Frame")
MIN_FPS, MAX_FPS = 0.01, 60
MAX_HOLD = 60
MAX_FPS_GIF = 50  # browsers show a frame of 10 ms for 100 ms
MAX_SECONDS_GIF = 655  # a duration is stored in 16 bits, in hundredths of a second
IMAGES_PER_ROW = 8
# The crf of x264. With its default of 23 the edges between enlarged pixels of coloured noise are blurred.
QUALITY = 12
# From version 17 on, PyAV converts a frame with one thread per CPU unless told otherwise.
ONE_THREAD = {"threads": 1} if int(av.__version__.partition(".")[0]) >= 17 else {}


def write_film(path: str | os.PathLike, frames: Sequence[Image.Image], fps: float, hold: float = 2.0) -> None:
    """Writes frames of one size as an animation in the format of the suffix (FILMS), atomically. Equal frames give equal bytes.

    fps: frames per second, 0.01 to 60. hold: duration of the last frame in seconds, 0 to 60, but at least that of the others.

    Raises InputError for an unknown suffix, no frames, frames of several sizes, fps or hold out of range, or if the animation
    cannot be encoded or written.
    """
    path = Path(path)
    write = lookup(FILMS, path.suffix.lower(), f"{path}: the suffix")
    if not MIN_FPS <= fps <= MAX_FPS:
        raise InputError(f"fps: {fps} is out of range; choose {MIN_FPS} to {MAX_FPS} frames per second", key=path)
    if not 0 <= hold <= MAX_HOLD:
        raise InputError(f"hold: {hold} is out of range; choose 0 to {MAX_HOLD} seconds", key=path)
    if not frames:
        raise InputError("there are no frames; at least one is needed", key=path)
    if len(sizes := sorted({frame.size for frame in frames})) > 1:
        some = " and ".join(f"{width}x{height}" for width, height in sizes[:2])
        raise InputError(f"the frames have {len(sizes)} sizes ({some}); they must have the same size", key=path)
    write(path, [frame.convert("RGB") for frame in frames], fps, hold)


def _write_gif(path: Path, frames: list[Image.Image], fps: float, hold: float) -> None:
    if fps > MAX_FPS_GIF:
        # Drops frames to keep the speed; the first and the last frame stay.
        kept = np.linspace(0, len(frames) - 1, max(1, round(len(frames) * MAX_FPS_GIF / fps))).round().astype(int)
        frames, fps = [frames[i] for i in kept], MAX_FPS_GIF
    # Durations are multiples of 10 ms; their rounding errors do not add up.
    hundredths = np.diff([round(100 * i / fps) for i in range(len(frames) + 1)])
    hundredths[-1] = max(hundredths[-1], round(100 * hold))
    if hundredths.sum() > 100 * MAX_SECONDS_GIF:
        raise InputError(f"a GIF is at most {MAX_SECONDS_GIF} seconds long; choose more fps, fewer frames or .mp4", key=path)
    # Gray frames keep all their values; coloured ones have 256 colours each. Consecutive equal frames become one.
    colour = any(np.ptp(np.asarray(frame), axis=-1).any() for frame in frames)
    first, *others = [frame.quantize(256) if colour else frame.convert("L") for frame in frames]
    with atomic(path) as temporary:
        first.save(temporary, save_all=True, append_images=others, duration=(10 * hundredths).tolist(), loop=0)


def _write_mp4(path: Path, frames: list[Image.Image], fps: float, hold: float) -> None:
    """Writes H.264 in the colour space BT.709, with its index at the start, so that a browser can play it while loading."""
    try:
        av.Codec("libx264", "w")
    except ValueError:
        raise InputError("this PyAV has no libx264 encoder, which .mp4 needs; choose .gif", key=path) from None
    # 4:2:0 colour subsampling needs even sides.
    frames = [ImageOps.expand(frame, (0, 0, frame.width % 2, frame.height % 2), PAPER) for frame in frames]
    frames += frames[-1:] * (round(hold * fps) - 1)
    # With several threads the bytes of the file would depend on their number.
    options = {"crf": str(QUALITY), "threads": "1", "colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}
    with atomic(path) as temporary:
        try:
            with av.open(str(temporary), "w", "mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as film:
                stream = film.add_stream("libx264", Fraction(fps).limit_denominator(1000), {**options, "color_range": "tv"})
                stream.width, stream.height = frames[0].size
                stream.pix_fmt = "yuv420p"
                for i, frame in enumerate(frames):
                    picture = av.VideoFrame.from_image(frame)
                    picture = picture.reformat(
                        format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG", interpolation="AREA", **ONE_THREAD
                    )
                    picture.pts = i
                    film.mux(stream.encode(picture))
                film.mux(stream.encode())
        except av.FFmpegError as error:
            # `atomic` reports errors of the disk.
            if isinstance(error, OSError):
                raise
            size = f"{frames[0].width}x{frames[0].height}"
            raise InputError(f"libx264 cannot encode frames of {size} ({error.strerror}); choose .gif", key=path) from error


FILMS: dict[str, Callable[[Path, list[Image.Image], float, float], None]] = {".gif": _write_gif, ".mp4": _write_mp4}


def ping_pong(frames: Sequence[Frame]) -> list[Frame]:
    """Returns frames forwards and backwards, each end once, for a seamless loop: 0 1 2 3 becomes 0 1 2 3 2 1."""
    return [*frames, *frames[-2:0:-1]]


def denoising_frames(
    x: np.ndarray,
    x0: np.ndarray,
    levels: Sequence[float],
    tile: int,
    captions: tuple[str, str] = ("x_t", "x0"),
    upscaling: str = "nearest",
) -> list[Image.Image]:
    """Returns F frames with x_t above the prediction of x0 for K images, below a title such as "t = 250".

    x, x0: (F, K, H, W, C). levels: (F,). More than 8 images are put into several pairs of rows.
    Raises InputError for arrays of another shape or type, or for an unknown upscaling.
    """
    _check(x, "x")
    _check(x0, "x0")
    rows = -(-x.shape[1] // IMAGES_PER_ROW)
    columns = -(-x.shape[1] // rows)
    enlarge = lookup(UPSCALING, upscaling, "upscaling")

    def pairs(f: int) -> Image.Image:
        parts = [slice(i, i + columns) for i in range(0, x.shape[1], columns)]
        return _stacked([captioned([list(x[f, part]), list(x0[f, part])], captions, [], tile, enlarge) for part in parts])

    return _titled([pairs(f) for f in range(len(x))], [f"t = {level:.4g}" for level in levels])


def grid_frames(x: np.ndarray, levels: Sequence[float], columns: int, tile: int, upscaling: str = "nearest") -> list[Image.Image]:
    """Returns F frames with K images in a grid, below a title such as "t = 250". x: (F, K, H, W, C). levels: (F,)."""
    return _titled(_grids(x, columns, tile, upscaling), [f"t = {level:.4g}" for level in levels])


def training_frames(
    images: np.ndarray, steps: Sequence[int], columns: int, tile: int, upscaling: str = "nearest"
) -> list[Image.Image]:
    """Returns a grid of samples for each training step, below "step 2,500". images: (F, K, H, W, C). steps: (F,)."""
    return _titled(_grids(images, columns, tile, upscaling), [f"step {step:,}" for step in steps])


def strip_film(images: np.ndarray, columns: int, tile: int, upscaling: str = "nearest") -> list[Image.Image]:
    """Returns the frames of an interpolation (F, H, W, C), forwards and backwards, or of K of them in a grid (F, K, H, W, C).

    They form a loop: write them with hold = 0.
    """
    return ping_pong(_grids(images[:, None] if images.ndim == 4 else images, columns, tile, upscaling))


def progressive_picture(
    x: np.ndarray, levels: Sequence[float], tile: int, samples: int = 8, upscaling: str = "nearest"
) -> Image.Image:
    """Returns a picture with a row for each sample and a column for each level, from noise (left) to image.

    x: (F, K, H, W, C), x_t or the predictions of x0. levels: (F,). Raises InputError as `denoising_frames` does.
    """
    _check(x, "x")
    captions = [f"t={level:.4g}" for level in levels]
    rows = [list(x[:, k]) for k in range(min(samples, x.shape[1]))]
    # Adjacent captions must not touch.
    tile = max(tile, _width(captions))
    return captioned(rows, [""] * len(rows), captions, tile, lookup(UPSCALING, upscaling, "upscaling"))


def _grids(images: np.ndarray, columns: int, tile: int, upscaling: str) -> list[Image.Image]:
    _check(images, "images")
    if columns < 1:
        raise InputError(f"{columns} must be at least 1", key="columns")
    enlarge, starts = lookup(UPSCALING, upscaling, "upscaling"), range(0, images.shape[1], columns)
    return [captioned([list(grid[i : i + columns]) for i in starts], [""] * len(starts), [], tile, enlarge) for grid in images]


def _check(images: np.ndarray, name: str) -> None:
    if images.dtype != np.uint8 or images.ndim != 5 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise InputError(f"{images.dtype} {images.shape} must be uint8 (frames, images, height, width, 1 or 3)", key=name)


def _width(texts: Sequence[str]) -> int:
    return math.ceil(max(font_of(text).getlength(text) for text in texts)) + MARGIN


def _titled(tables: Sequence[Image.Image], titles: Sequence[str]) -> list[Image.Image]:
    """Puts a title above each table; all frames are as wide as the longest title."""
    size = (_width(titles) + MARGIN, MARGIN + sum(font_of("").getmetrics()))
    frames = []
    for table, title in zip(tables, titles, strict=True):
        head = Image.new("RGB", size, PAPER)
        ImageDraw.Draw(head).text((MARGIN, MARGIN), title, INK, font_of(title))
        frames.append(_stacked([head, table]))
    return frames


def _stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Stacks pictures vertically, on a white canvas as wide as the widest."""
    canvas = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), PAPER)
    y = 0
    for picture in pictures:
        canvas.paste(picture, (0, y))
        y += picture.height
    return canvas
