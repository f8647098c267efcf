"""The names of input images and masks. Nothing here imports PyTorch, so that the command line refuses wrong ones at once."""

import os
import re
from collections.abc import Collection
from pathlib import Path

from ddpm.core.files import InputError


def image_name(name: str) -> tuple[str, int] | None:
    """Returns ("test", 12) for `test:12`, ("seed", 7) for `seed:7`, and None for the path of a picture.

    Raises InputError for a path without a file.
    """
    if match := re.fullmatch(r"(test|seed):(\d{1,12})", name):
        return match[1], int(match[2])
    if not os.path.isfile(name):
        raise InputError(
            "no such picture; give a file, a test image such as 'test:3', or a sample such as 'seed:7'", key=Path(name)
        )
    return None


def check_mask(name: str, masks: Collection[str]) -> None:
    """Raises InputError for a name that is neither a mask's nor a file's."""
    if name not in masks and not os.path.isfile(name):
        raise InputError(f"{name!r} is neither a picture nor one of {', '.join(masks)}", key="mask")
