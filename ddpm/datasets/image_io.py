"""Decodes picture files to uint8 (H, W, C): upright, in 8 bits, transparent parts black. Resizes them to (size, size, C)."""

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ddpm.core.files import InputError, first_line

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}

# The transposition that turns a picture upright, by its EXIF orientation (EXIF 2.3, section 4.6.4).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip

GRAY_MODES = {"1", "L", "LA", "La"}
# Formats whose mode "I" holds 16 bits: PNG in older versions of Pillow, and PGM.
SIXTEEN_BITS = {"PNG", "PPM"}


class Unreadable(Exception):  # noqa: N818 (a state of a picture)
    """A picture that cannot be read. The message is the reason."""


def decode(file: str | os.PathLike | BytesIO, mode: str | None) -> np.ndarray:
    """Returns the picture of a file, uint8 (H, W, C), its first frame if it has several. Raises Unreadable.

    mode: "L" or "RGB" converts; None keeps a gray picture gray and converts every other one to RGB.
    """
    try:
        with Image.open(file) as opened:
            # Before the orientation is read: Pillow turns some formats (TIFF) upright when it loads them.
            opened.load()
            picture = _opaque(_eight_bits(_upright(opened), opened.format))
            array = np.asarray(picture.convert(mode or ("L" if picture.mode in GRAY_MODES else "RGB")))
    except UnidentifiedImageError:
        raise Unreadable("no format that Pillow knows") from None
    except Exception as error:  # Pillow raises many types for damaged files
        raise Unreadable(getattr(error, "strerror", None) or first_line(error)) from None
    return array[..., None] if array.ndim == 2 else array


def read_picture(path: Path, mode: str | None) -> np.ndarray:
    """Returns the picture at a path, as `decode` does. Raises InputError, with the path as key, if it cannot be read."""
    try:
        return decode(path, mode)
    except Unreadable as error:
        raise InputError(f"cannot be read as an image ({error}); repair or remove it", key=path) from None


def _upright(picture: Image.Image) -> Image.Image:
    try:
        method = UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged metadata, which does not affect the pixels
        method = None
    return picture if method is None else picture.transpose(method)


def _eight_bits(picture: Image.Image, kind: str | None) -> Image.Image:
    """Returns a 16-bit gray picture in 8 bits; Pillow's own conversion clips everything above 255 to white."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and kind in SIXTEEN_BITS):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"its mode {picture.mode!r} has no known range of values")
    return picture


def _opaque(picture: Image.Image) -> Image.Image:
    """Returns the picture over black, the colour of the borders of `resize_mode: pad`."""
    if not picture.has_transparency_data:
        return picture
    black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, picture.convert("RGBA")).convert("L" if picture.mode in GRAY_MODES else "RGB")


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
