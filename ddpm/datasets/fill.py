"""Decodes and resizes pictures in threads, and fills arrays with them; collects those that cannot be read."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ddpm.core.files import InputError, write_text
from ddpm.core.progress import Progress
from ddpm.datasets.image_io import RESIZE_MODES, Decoding, Extent, RangeUnknown, Unreadable, auto_range, decode
from ddpm.datasets.index import Files, Load, Picture
from ddpm.datasets.resume import PartialArrays
from ddpm.datasets.settings import CHANNELS, PrepareData

# Images in progress for each thread: enough that none waits for a slow image, few enough to bound the memory.
AHEAD = 8
MAX_NAMED = 5  # unreadable pictures in a message
Item, Result = TypeVar("Item"), TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yields work(item) of all items in order; threads compute up to AHEAD results each in advance.

    Threads suffice for pictures: Pillow decodes and resizes without holding Python's global lock.
    """
    waiting: deque = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def resized(image: np.ndarray, settings: PrepareData) -> np.ndarray:
    """Returns the image in the size of the settings."""
    size = settings.size()
    return RESIZE_MODES[settings.resize_mode](image, size, settings.color()) if size else image


def converted(image: np.ndarray, settings: PrepareData) -> np.ndarray:
    """Returns an image (H, W, 1 or 3) of a data set in memory with the channels and in the size of the settings."""
    mode = CHANNELS[settings.channels]
    if mode and len(mode) != image.shape[2]:
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).convert(mode)
        image = np.asarray(picture).reshape(*image.shape[:2], len(mode))
    return resized(image, settings)


def mismatch(image: np.ndarray, shape: tuple[int, int, int], name: str) -> InputError:
    """Returns the error for an image whose shape is not that of the first one."""
    height, width, channels = image.shape
    if channels != shape[2]:
        message = f"has {channels} channels, the first image {shape[2]}; convert all with prepare_data.channels: gray or rgb"
    else:
        advice = "give all one size with prepare_data.image_size and prepare_data.resize_mode"
        message = f"is {height}x{width}, the first image {shape[0]}x{shape[1]}; {advice}"
    return InputError(message, key=name)


def unreadable(failed: dict[str, str], total: int, listed: Path) -> InputError:
    """Returns the error for `failed` of `total` pictures, each with the reason; it names the first ones, a file all of them."""
    advice = "repair or remove what cannot be read, or leave it out by prepare_data.skip_bad: true"
    if len(failed) == 1:
        ((name, reason),) = failed.items()
        return InputError(f"cannot be read as an image ({reason}); {advice}", key=name)
    named = ", ".join(f"{name} ({reason})" for name, reason in islice(failed.items(), MAX_NAMED))
    more = f", and {len(failed) - MAX_NAMED:,} others" if len(failed) > MAX_NAMED else ""
    return InputError(f"{len(failed):,} of {total:,} images cannot be read: {named}{more}, all named in {listed}; {advice}")


def _unknown(low: float, high: float) -> Extent:
    raise RangeUnknown


def measure(files: Files, how: Decoding, workers: int) -> dict[str, list[float]]:
    """Returns the `auto_range` of all pictures of more than 8 bits together, by the type of their values: "int", "float"."""
    extents: dict[str, list[float]] = {}
    lock = threading.Lock()

    def note(low: float, high: float) -> Extent:
        with lock:
            before = extents.get(type(high).__name__, [low, high])
            extents[type(high).__name__] = [min(low, before[0]), max(high, before[1])]
        return low, high

    def read(item: tuple[Picture, Load]) -> None:
        with suppress(Unreadable):
            decode(item[1](), how._replace(scale=note))

    pictures = files.index.pictures(files.store.by_offset)
    with Progress("measuring", sum(files.index.counts), "images") as progress:
        for _ in in_threads(read, files.store.fetch(pictures), workers):
            progress.advance()
    return {kind: list(auto_range(*extent)) for kind, extent in sorted(extents.items())}


def fill(partial: PartialArrays, files: Files, settings: PrepareData, name: str, workers: int) -> dict[str, str]:
    """Fills the arrays with the pictures whose rows are missing. Returns those that cannot be read, each with the reason.

    Raises InputError for a picture of another size or number of channels than the first one.
    """
    how = settings.decoding()
    if settings.value_range is not None:
        return _fill(partial, files, settings, how, name, workers)
    try:
        return _fill(partial, files, settings, how._replace(scale=_unknown), name, workers)
    except RangeUnknown:
        ranges = measure(files, how, workers)
        partial.scale_by(ranges)
        shown = ", ".join(f"{kind} from {low:,} to {high:,}" for kind, (low, high) in ranges.items())
        print(f"{name}: images of more than 8 bits are scaled: {shown} (prepare_data.value_range)", flush=True)
        how = how._replace(scale=lambda low, high: tuple(ranges[type(high).__name__]))
        return _fill(partial, files, settings, how, name, workers)


def _fill(partial: PartialArrays, files: Files, settings: PrepareData, how: Decoding, name: str, workers: int) -> dict[str, str]:
    def work(item: tuple[Picture, Load]) -> tuple[Picture, np.ndarray | None, str]:
        picture, load = item
        try:
            return picture, resized(decode(load(), how), settings), ""
        except Unreadable as error:
            return picture, None, str(error)

    store, total, several = files.store, sum(partial.counts), []
    how = how._replace(several_frames=lambda: several.append(1))
    failed: dict[str, str] = {}
    missing = store.fetch(partial.missing(files.index.pictures(store.by_offset)))
    with Progress(name, total, "images", partial.written()) as progress:
        for picture, image, reason in in_threads(work, missing, workers):
            if image is None:
                failed[store.shown(picture)] = reason
            else:
                partial.begin(image.shape)
                if image.shape != partial.shape:
                    raise mismatch(image, partial.shape, store.shown(picture))
                partial.write(picture, image)
            progress.advance()
    if failed:
        write_text(partial.unreadable, "".join(f"{name}: {reason}\n" for name, reason in failed.items()))
    if several:
        print(f"{name}: {len(several):,} images have several frames; the first of each is taken", flush=True)
    return failed
