"""Output of the commands: the size of pictures, and the seconds."""

import time
from pathlib import Path

from ddpm.core.files import InputError, print_line
from ddpm.plots.image_grid import GAP

MAX_PIXELS = 64_000_000
MAX_FILM_PIXELS = 400_000_000


def check_size(shape: tuple[int, int, int], tile: int, images: int, most: int = MAX_PIXELS) -> None:
    """Raises InputError if so many images (H, W, C), enlarged to `tile` pixels, have more than `most` pixels together."""
    longest = max(shape[:2])
    factor = max(1, -(-tile // longest))
    if images * (factor * shape[0] + GAP) * (factor * shape[1] + GAP) > most:
        raise InputError(
            f"{images:,} images of {factor * longest} pixels are too large for one file; use a smaller --tile, or fewer images",
            key="tile",
        )


class Clock:
    """Measures the seconds since it was made; str(clock) shows them."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def __str__(self) -> str:
        return f"{time.perf_counter() - self.start:.1f} s"

    def report(self, path: Path, what: str) -> None:
        """Prints the last line of a command: what it wrote to a path, and the seconds."""
        print_line(f"wrote {path}: {what}, {self}")
