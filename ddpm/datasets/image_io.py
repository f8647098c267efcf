"""Decodes picture files to uint8 (H, W, C): upright, in 8 bits, over a background. Resizes them."""

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
Color = tuple[int, int, int]  # 0 to 255
BLACK = (0, 0, 0)
CHANNELS_OF_16_BITS = {"RGB", "RGBX", "RGBA", "RGBa", "CMYK"}
WHOLE_IN_FIRST_FRAME = {"MPO", "PSD"}  # the others are previews or layers
WHITE_IS_ZERO = 0  # TIFF's PhotometricInterpretation
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
    background: the color behind transparent parts.
    scale: maps the Extent of a picture of more than 8 bits to the values that become 0 and 255.
    several_frames: is called for a picture of several frames, of which the first is taken.
    """

    mode: str | None = None
    background: Color = BLACK
    scale: Callable[[float, float], Extent] = auto_range
    several_frames: Callable[[], object] = int


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
            if opened.format not in WHOLE_IN_FIRST_FRAME and getattr(opened, "is_animated", False):
                how.several_frames()
            array = np.asarray(picture.convert(how.mode or ("L" if picture.mode in GRAY_MODES else "RGB")))
    except UnidentifiedImageError:
        raise Unreadable("no format that Pillow knows") from None
    except RangeUnknown:
        raise
    except Exception as error:  # Pillow raises many types for damaged files
        raise Unreadable(getattr(error, "strerror", None) or first_line(error)) from None
    return array[..., None] if array.ndim == 2 else array


def read_picture(path: Path | BytesIO, mode: str | None) -> np.ndarray:
    """Returns the picture in a file, as `decode` does. Raises InputError, with the path or `image` as key, if that fails."""
    try:
        return decode(path, Decoding(mode))
    except Unreadable as error:
        raise InputError(
            f"cannot be read as an image ({error}); repair or remove it", key="image" if isinstance(path, BytesIO) else path
        ) from None


def _upright(picture: Image.Image, opened: Image.Image) -> Image.Image:
    """Returns the picture, turned as the metadata of the opened file say."""
    try:
        method = UPRIGHT.get(opened.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged metadata, which does not affect the pixels
        method = None
    return picture if method is None else picture.transpose(method)


def _more_than_8_bits(opened: Image.Image, tiles: list, file: str | os.PathLike | BytesIO) -> np.ndarray | None:
    """Returns the values (H, W) or (H, W, C) of a loaded picture of 16 or 32 bits, None for one of 8 bits."""
    codec, _, _, arguments = tiles[0] if tiles else ("", (), 0, None)
    stored = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    tags = getattr(opened, "tag_v2", {})  # of TIFF
    if opened.mode in ("I", "F") or opened.mode.startswith("I;16"):
        values = np.asarray(opened)
        if stored == "I;32N":  # Pillow reads unsigned values as signed ones
            return values.view(np.uint32)
        inverted = opened.mode.startswith("I;16") and tags.get(ExifTags.Base.PhotometricInterpretation) == WHITE_IS_ZERO
        return 65535 - values if inverted else values
    # Of 16 bits per channel Pillow keeps the upper 8. In the swapped byte order it keeps the lower 8.
    if stored == "LA;16B":
        halves = _reread(file, "RGBA")  # the four bytes of a pixel
        return (halves[..., ::2].astype(np.uint16) << 8) | halves[..., 1::2]
    if codec == "ppm" and arguments[-1] > 255:
        values = (_reread(file, "RGB;16B", "raw").astype(np.uint16) << 8) | _reread(file, "RGB;16L", "raw")
        return np.rint(values * (65535 / arguments[-1])).astype(np.uint16)  # as Pillow scales those of gray
    kind, _, order = str(stored).partition(";16")
    if kind in CHANNELS_OF_16_BITS and order in SWAPPED:
        plain = kind.replace("a", "A")  # "RGBa" divides by alpha, each half by itself
        upper, lower = (_reread(file, f"{plain};16{which}").astype(np.uint16) for which in (order, SWAPPED[order]))
        values = (upper << 8) | lower
        if kind != plain:
            values[..., :3] = np.minimum(values[..., :3] * (65535 / np.maximum(values[..., 3:], 1)), 65535)
        return values
    if codec == "SGI16" or np.max(tags.get(ExifTags.Base.BitsPerSample, 8)) > 8:
        raise ValueError("Pillow reads only 8 of its bits per channel; convert it to PNG")
    return None


def _reread(file: str | os.PathLike | BytesIO, rawmode: str, codec: str | None = None) -> np.ndarray:
    """Returns a picture whose bytes are taken as `rawmode` says, a name of Pillow's."""
    if isinstance(file, BytesIO):
        file.seek(0)
    with Image.open(file) as other:
        other.tile = [
            (codec or kind, extent, offset, (rawmode, *arguments[1:]) if isinstance(arguments, tuple) and not codec else rawmode)
            for kind, extent, offset, arguments in other.tile
        ]
        return np.asarray(other)


def _scaled(values: np.ndarray, opened: Image.Image, scale: Callable[[float, float], Extent]) -> Image.Image:
    """Returns values of more than 8 bits as a picture of 8 bits; values outside of the range are clipped."""
    colors = values if values.ndim == 2 or opened.mode == "CMYK" else values[..., 0] if values.shape[2] == 2 else values[..., :3]
    low, high = colors.min().item(), colors.max().item()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("it holds values that are not finite")
    low, high = scale(low, high)
    eight = np.rint(np.clip((colors - float(low)) * (255 / ((high - low) or 1)), 0, 255)).astype(np.uint8)
    picture = Image.frombytes("CMYK", opened.size, eight.tobytes()) if opened.mode == "CMYK" else Image.fromarray(eight)
    if opened.mode == "RGBA":
        picture.putalpha(opened.getchannel("A"))
    elif (key := opened.info.get("transparency")) is not None:
        same = colors == np.asarray(key)
        picture.putalpha(Image.fromarray(np.where(same.all(2) if same.ndim == 3 else same, 0, 255).astype(np.uint8)))
    return picture


def _opaque(picture: Image.Image, background: Color) -> Image.Image:
    """Returns the picture over the background."""
    if not picture.has_transparency_data:
        return picture
    behind = Image.new("RGBA", picture.size, (*background, 255))
    gray = picture.mode in GRAY_MODES and len(set(background)) == 1
    return Image.alpha_composite(behind, picture.convert("RGBA")).convert("L" if gray else "RGB")


def pad(image: np.ndarray, size: tuple[int, int], background: Color = BLACK) -> np.ndarray:
    """Adds borders to an image of at most `size`, (height, width). Raises InputError for a larger one."""
    height, width, channels = image.shape
    if height > size[0] or width > size[1]:
        message = f"{size[0]}x{size[1]} is smaller than an image of {height}x{width}; set prepare_data.resize_mode to 'resize'"
        raise InputError(message, key="prepare_data.image_size", where="params.yaml")
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    padded = np.empty((*size, channels), np.uint8)
    padded[:] = np.asarray(Image.new("RGB", (1, 1), background).convert("L" if channels == 1 else "RGB"))
    padded[top : top + height, left : left + width] = image
    return padded


def resize(image: np.ndarray, size: tuple[int, int], background: Color = BLACK) -> np.ndarray:
    """Scales an image with an antialiased bicubic filter until it covers `size`, (height, width), then crops the center."""
    height, width, channels = image.shape
    if (height, width) == size:
        return image
    scale = max(size[0] / height, size[1] / width)
    new = (max(size[1], round(width * scale)), max(size[0], round(height * scale)))
    picture = Image.fromarray(image[:, :, 0] if channels == 1 else image).resize(new, Image.Resampling.BICUBIC)
    left, top = (new[0] - size[1]) // 2, (new[1] - size[0]) // 2
    return np.asarray(picture.crop((left, top, left + size[1], top + size[0]))).reshape(*size, channels)


RESIZE_MODES: dict[str, Callable[[np.ndarray, tuple[int, int], Color], np.ndarray]] = {"pad": pad, "resize": resize}
