"""Decodes picture files to uint8 (H, W, C): upright, in 8 bits, over a background. Resizes them to (size, size, C)."""

import math
import os
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ddpm.core.files import InputError, first_line

Image.init()
# Formats that Pillow recognizes, but does not decode, or (EPS) only with the help of another program.
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
READ = (Image.OPEN.keys() | {"MPO"}) - NOT_DECODED  # MPO, with several JPEGs in a file, is opened as JPEG
EXTENSIONS = {ending for ending, kind in Image.registered_extensions().items() if kind in READ}

# The transposition that turns a picture upright, by its EXIF orientation (EXIF 2.3, section 4.6.4).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip

GRAY_MODES = {"1", "L", "LA", "La"}
BLACK = (0, 0, 0)
SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}  # the other order of the bytes of 16 bits

# The lowest and the highest value of a picture, int or float, and the values that become 0 and 255.
Extent = tuple[float, float]


class Unreadable(Exception):  # noqa: N818 (a state of a picture)
    """A picture that cannot be read. The message is the reason."""


class RangeUnknown(Exception):  # noqa: N818
    """A picture has more than 8 bits, and the range of values of its data set is not known yet."""


def auto_range(low: float, high: float) -> Extent:
    """Returns the values that become 0 and 255 in pictures of more than 8 bits whose values are from low to high.

    Integers: 0 and the smallest 2^k - 1, k >= 8, that is not below `high`, such as 4,095 for 12 bits that are stored in 16.
    Floats: 0 and 1. Where these do not hold all values: low and high.
    """
    if low < 0 or (isinstance(high, float) and high > 1):
        return low, high
    return (0.0, 1.0) if isinstance(high, float) else (0, 2 ** max(8, high.bit_length()) - 1)


class Decoding(NamedTuple):
    """How pictures become uint8 arrays.

    mode: "L" or "RGB" converts; None keeps a gray picture gray and converts every other one to RGB.
    background: the color, 0 to 255, behind transparent parts.
    scale: maps the Extent of a picture of more than 8 bits to the values that become 0 and 255.
    """

    mode: str | None = None
    background: tuple[int, int, int] = BLACK
    scale: Callable[[float, float], Extent] = auto_range


def decode(file: str | os.PathLike | BytesIO, how: Decoding = Decoding()) -> np.ndarray:  # noqa: B008 (it is immutable)
    """Returns the picture of a file, uint8 (H, W, C), its first frame if it has several. Raises Unreadable."""
    try:
        with Image.open(file) as opened:
            tiles = opened.tile
            # Before the orientation is read: Pillow turns some formats (TIFF) upright when it loads them.
            opened.load()
            values = _more_than_8_bits(opened, tiles, file)
            picture = opened if values is None else _scaled(values, opened, how.scale)
            picture = _opaque(_upright(picture, opened), how.background)
            array = np.asarray(picture.convert(how.mode or ("L" if picture.mode in GRAY_MODES else "RGB")))
    except UnidentifiedImageError:
        raise Unreadable("no format that Pillow knows") from None
    except RangeUnknown:
        raise
    except Exception as error:  # Pillow raises many types for damaged files
        raise Unreadable(getattr(error, "strerror", None) or first_line(error)) from None
    return array[..., None] if array.ndim == 2 else array


def read_picture(path: Path, mode: str | None) -> np.ndarray:
    """Returns the picture at a path, as `decode` does. Raises InputError, with the path as key, if it cannot be read."""
    try:
        return decode(path, Decoding(mode))
    except Unreadable as error:
        raise InputError(f"cannot be read as an image ({error}); repair or remove it", key=path) from None


def _upright(picture: Image.Image, opened: Image.Image) -> Image.Image:
    """Returns the picture, turned as the metadata of the opened file say."""
    try:
        method = UPRIGHT.get(opened.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged metadata, which does not affect the pixels
        method = None
    return picture if method is None else picture.transpose(method)


def _more_than_8_bits(opened: Image.Image, tiles: list, file: str | os.PathLike | BytesIO) -> np.ndarray | None:
    """Returns the values (H, W) or (H, W, C) of a loaded picture of 16 or 32 bits, None for one of 8 bits."""
    if opened.mode.startswith("I;16") or opened.mode in ("I", "F"):
        return np.asarray(opened)
    first = tiles[0][3] if tiles else None
    stored = first[0] if isinstance(first, tuple) and first else first
    if opened.mode not in ("RGB", "RGBA") or not (isinstance(stored, str) and stored[-4:-1] == ";16"):
        return None
    # Of 16 bits per color Pillow keeps the upper 8. In the swapped byte order it keeps the lower 8.
    swapped = stored[:-1] + SWAPPED[stored[-1]]
    if isinstance(file, BytesIO):
        file.seek(0)
    with Image.open(file) as other:
        other.tile = [(*tile[:3], swapped if tile[3] == stored else (swapped, *tile[3][1:])) for tile in other.tile]
        try:
            lower = np.asarray(other)
        except ValueError:  # a combination that Pillow reads in one order only
            return None
    return (np.asarray(opened).astype(np.uint16) << 8) | lower


def _scaled(values: np.ndarray, opened: Image.Image, scale: Callable[[float, float], Extent]) -> Image.Image:
    """Returns values of more than 8 bits as a picture of 8 bits; values outside of the range are clipped."""
    colors = values[..., :3] if values.ndim == 3 else values
    low, high = colors.min().item(), colors.max().item()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("it holds values that are not finite")
    low, high = scale(low, high)
    picture = Image.fromarray(np.rint(np.clip((colors - float(low)) * (255 / ((high - low) or 1)), 0, 255)).astype(np.uint8))
    if opened.mode == "RGBA":
        picture.putalpha(opened.getchannel("A"))
    return picture


def _opaque(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Returns the picture over the background."""
    if not picture.has_transparency_data:
        return picture
    behind = Image.new("RGBA", picture.size, (*background, 255))
    gray = picture.mode in GRAY_MODES and len(set(background)) == 1
    return Image.alpha_composite(behind, picture.convert("RGBA")).convert("L" if gray else "RGB")


def pad(image: np.ndarray, size: int) -> np.ndarray:
    """Adds black borders to an image of at most `size` on each side. Raises InputError for a larger one."""
    height, width, _ = image.shape
    if height > size or width > size:
        message = f"{size} is smaller than an image of {height}x{width}; set prepare_data.resize_mode to 'resize'"
        raise InputError(message, key="prepare_data.image_size", where="params.yaml")
    top, left = (size - height) // 2, (size - width) // 2
    return np.pad(image, ((top, size - height - top), (left, size - width - left), (0, 0)))


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Scales the shorter side to `size` with an antialiased bicubic filter, then crops the center."""
    height, width, channels = image.shape
    if (height, width) == (size, size):
        return image
    scale = size / min(height, width)
    new = (max(size, round(width * scale)), max(size, round(height * scale)))
    picture = Image.fromarray(image[:, :, 0] if channels == 1 else image).resize(new, Image.Resampling.BICUBIC)
    left, top = (new[0] - size) // 2, (new[1] - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size))).reshape(size, size, channels)


RESIZE_MODES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"pad": pad, "resize": resize}
