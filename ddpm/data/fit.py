"""Brings an image to the wanted size: uint8 (H, W, C) -> uint8 (size, size, C)."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from ddpm.files import InputError


def pad(image: np.ndarray, size: int) -> np.ndarray:
    """Black borders around an image that is at most `size` on each side; raises InputError for a larger one."""
    height, width, _ = image.shape
    if height > size or width > size:
        raise InputError(
            f"params.yaml: prepare_data.image_size: {size} is smaller than an image of {height}x{width}, which padding cannot "
            "shrink; set prepare_data.fit to 'resize'"
        )
    top, left = (size - height) // 2, (size - width) // 2
    return np.pad(image, ((top, size - height - top), (left, size - width - left), (0, 0)))


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Scale the shorter side to `size` with an antialiased bicubic filter, then crop the middle."""
    height, width, channels = image.shape
    if (height, width) == (size, size):
        return image
    scale = size / min(height, width)
    new = (max(size, round(width * scale)), max(size, round(height * scale)))
    picture = Image.fromarray(image[:, :, 0] if channels == 1 else image).resize(new, Image.Resampling.BICUBIC)
    left, top = (new[0] - size) // 2, (new[1] - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size))).reshape(size, size, channels)


FITS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"pad": pad, "resize": resize}
