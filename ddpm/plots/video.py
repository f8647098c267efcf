"""Films made of images: GIF and MP4, and the frames of denoising, interpolation and training.

All take uint8 images (..., H, W, C), C = 1 (shown gray) or 3. `tile` is the least side of an image in a frame, in pixels.
"""

import math
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddpm.core.files import InputError, atomic
from ddpm.core.params import lookup
from ddpm.plots.image_grid import FONT_SIZE, INK, MARGIN, PAPER, UPSCALING, captioned, save_gif

Frame = TypeVar("Frame")
MIN_FPS, MAX_FPS = 0.01, 60
MAX_HOLD = 60
# Browsers show a frame of 10 ms for 100 ms.
MAX_FPS_GIF = 50
# A duration is stored in 16 bits, in hundredths of a second.
MAX_SECONDS_GIF = 655
IMAGES_PER_ROW = 8
# The crf of x264: the edges of enlarged pixels stay sharp, where its usual 23 blurs those of coloured noise.
QUALITY = 12


def write_film(path: str | os.PathLike, frames: Sequence[Image.Image], fps: float, hold: float = 2.0) -> None:
    """Write frames of one size as a film, in the format of its suffix (FILMS), atomically; equal frames give equal bytes.

    fps: frames per second, 0.01 to 60. hold: seconds that the last frame is shown, 0 to 60; never less than the others are.

    Raises InputError for an unknown suffix, no frames, frames of several sizes, fps or hold out of range, or where the film
    cannot be encoded or written.
    """
    path = Path(path)
    write = lookup(FILMS, path.suffix.lower(), f"{path}: the suffix")
    if not MIN_FPS <= fps <= MAX_FPS:
        raise InputError(f"fps: {fps} is out of range; choose {MIN_FPS} to {MAX_FPS} frames per second", key=path)
    if not 0 <= hold <= MAX_HOLD:
        raise InputError(f"hold: {hold} is out of range; choose 0 to {MAX_HOLD} seconds", key=path)
    if not frames:
        raise InputError("a film of no frames; give one at least", key=path)
    if len(sizes := sorted({frame.size for frame in frames})) > 1:
        some = " and ".join(f"{width}x{height}" for width, height in sizes[:2])
        raise InputError(f"frames of {len(sizes)} sizes ({some}); make all of one size", key=path)
    write(path, [frame.convert("RGB") for frame in frames], fps, hold)


def _write_gif(path: Path, frames: list[Image.Image], fps: float, hold: float) -> None:
    if fps > MAX_FPS_GIF:
        # Fewer frames, as fast: the first and the last of them stay.
        kept = np.linspace(0, len(frames) - 1, max(1, round(len(frames) * MAX_FPS_GIF / fps))).round().astype(int)
        frames, fps = [frames[i] for i in kept], MAX_FPS_GIF
    # What one frame loses by rounding to 10 ms, the next one gets.
    hundredths = np.diff([round(100 * i / fps) for i in range(len(frames) + 1)])
    hundredths[-1] = max(hundredths[-1], round(100 * hold))
    if hundredths.sum() > 100 * MAX_SECONDS_GIF:
        raise InputError(f"a GIF of over {MAX_SECONDS_GIF} seconds; choose more fps, fewer frames or .mp4", key=path)
    save_gif(path, frames, (10 * hundredths).tolist())


def _write_mp4(path: Path, frames: list[Image.Image], fps: float, hold: float) -> None:
    """H.264 with colours of BT.709, which players expect; its index stands first, so that a web page can play it at once."""
    try:
        av.Codec("libx264", "w")
    except ValueError:
        raise InputError("PyAV has no libx264 encoder here, which .mp4 needs; choose .gif", key=path) from None
    frames = [_even(frame) for frame in frames]
    frames += frames[-1:] * (round(hold * fps) - 1)
    # Several threads cut a frame into other parts, and the file into other bytes.
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
                        format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG", interpolation="AREA"
                    )
                    picture.pts = i
                    film.mux(stream.encode(picture))
                film.mux(stream.encode())
        except av.FFmpegError as error:
            # One that says what the disk lacks is for `atomic` to name.
            if isinstance(error, OSError):
                raise
            size = f"{frames[0].width}x{frames[0].height}"
            raise InputError(f"libx264 cannot encode frames of {size} ({error.strerror}); choose .gif", key=path) from error


FILMS: dict[str, Callable[[Path, list[Image.Image], float, float], None]] = {".gif": _write_gif, ".mp4": _write_mp4}


def _even(frame: Image.Image) -> Image.Image:
    """A frame of even sides, as halved colour channels need: a line of paper is added where one is odd."""
    canvas = Image.new("RGB", (frame.width + frame.width % 2, frame.height + frame.height % 2), PAPER)
    canvas.paste(frame)
    return canvas


def ping_pong(frames: Sequence[Frame]) -> list[Frame]:
    """Forth and back, each end once: 0 1 2 3 becomes 0 1 2 3 2 1, which repeats without a halt."""
    return [*frames, *frames[-2:0:-1]]


def denoising_frames(
    x: np.ndarray,
    x0: np.ndarray,
    levels: Sequence[float],
    tile: int,
    captions: tuple[str, str] = ("x_t", "x0"),
    upscaling: str = "nearest",
) -> list[Image.Image]:
    """x_t above the prediction of x0 for K images, under "t = 250"; more than 8 images go on in further pairs of rows.

    x, x0: (F, K, H, W, C); levels: (F,). Raises InputError for arrays of another kind, or for an unknown upscaling.
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
    """All K images in one grid under "t = 250", a frame per level. x: (F, K, H, W, C); levels: (F,)."""
    return _titled(_grids(x, columns, tile, upscaling), [f"t = {level:.4g}" for level in levels])


def training_frames(
    images: np.ndarray, steps: Sequence[int], columns: int, tile: int, upscaling: str = "nearest"
) -> list[Image.Image]:
    """What a network drew as it learned: a grid per snapshot under "step 2,500". images: (F, K, H, W, C); steps: (F,)."""
    return _titled(_grids(images, columns, tile, upscaling), [f"step {step:,}" for step in steps])


def strip_film(images: np.ndarray, columns: int, tile: int, upscaling: str = "nearest") -> list[Image.Image]:
    """An interpolation forth and back, (F, H, W, C), or K of them in one grid, (F, K, H, W, C).

    Made to repeat: write it with hold = 0.
    """
    return ping_pong(_grids(images[:, None] if images.ndim == 4 else images, columns, tile, upscaling))


def progressive_picture(
    x: np.ndarray, levels: Sequence[float], tile: int, samples: int = 8, upscaling: str = "nearest"
) -> Image.Image:
    """A row per sample and a column per level, from noise (left) to image.

    x: (F, K, H, W, C), x_t or the predictions of x0; levels: (F,). Raises InputError as `denoising_frames` does.
    """
    _check(x, "x")
    captions = [f"t={level:.4g}" for level in levels]
    rows = [list(x[:, k]) for k in range(min(samples, x.shape[1]))]
    # Captions of neighbours do not touch.
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
        raise InputError(f"{images.dtype} of shape {images.shape}; give uint8 (frames, images, height, width, 1 or 3)", key=name)


def _width(texts: Sequence[str]) -> int:
    font = ImageFont.load_default(FONT_SIZE)
    return math.ceil(max(font.getlength(text) for text in texts)) + MARGIN


def _titled(tables: Sequence[Image.Image], titles: Sequence[str]) -> list[Image.Image]:
    """Each table below its title; all as wide as the longest title needs."""
    font = ImageFont.load_default(FONT_SIZE)
    size = (_width(titles) + MARGIN, MARGIN + sum(font.getmetrics()))
    frames = []
    for table, title in zip(tables, titles, strict=True):
        head = Image.new("RGB", size, PAPER)
        ImageDraw.Draw(head).text((MARGIN, MARGIN), title, INK, font)
        frames.append(_stacked([head, table]))
    return frames


def _stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, on paper as wide as the widest."""
    canvas = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), PAPER)
    y = 0
    for picture in pictures:
        canvas.paste(picture, (0, y))
        y += picture.height
    return canvas
