"""Reads, fits and checks images in threads, and fills arrays with them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from ddpm.data.decode import Unreadable, decode
from ddpm.data.fit import FITS
from ddpm.data.listing import Picture
from ddpm.data.pictures import Files, Load
from ddpm.data.prepared import PrepareData
from ddpm.data.unfinished import Unfinished
from ddpm.files import InputError, writing
from ddpm.runtime import Progress

# Images under way for each thread: enough that none waits for a slow one, few enough to bound the memory.
AHEAD = 8
NAMED = 5  # unreadable pictures in a message

Item, Result = TypeVar("Item"), TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """work(item) of all items, in order; a few are computed ahead, by threads.

    Threads suffice for pictures: Pillow decodes and resizes outside Python's lock.
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


def fitted(image: np.ndarray, settings: PrepareData) -> np.ndarray:
    """The image in the size of the settings."""
    return FITS[settings.fit](image, settings.image_size) if settings.image_size else image


def mismatch(image: np.ndarray, shape: tuple[int, int, int], name: str) -> InputError:
    """The error for an image that has not the shape of the first one."""
    if image.shape[2] != shape[2]:
        return InputError(
            f"{name}: has {image.shape[2]} channels, the first image {shape[2]}; "
            "convert all with prepare_data.channels: gray or rgb"
        )
    return InputError(
        f"{name}: is {image.shape[0]}x{image.shape[1]}, the first image {shape[0]}x{shape[1]}; "
        "give all one size with prepare_data.image_size and prepare_data.fit"
    )


class Unread:
    """Pictures that could not be read: all are named in a file, the first ones kept for a message."""

    def __init__(self, path: Path, total: int):
        self.path, self.total = path, total
        self.count, self.first = 0, []

    def add(self, name: str, reason: str) -> None:
        if self.count < NAMED:
            self.first.append((name, reason))
        with writing(self.path), open(self.path, "a" if self.count else "w", encoding="utf-8") as file:
            file.write(f"{name}: {reason}\n")
        self.count += 1

    def refusal(self) -> InputError:
        """The error of one line that says so."""
        advice = "prepare_data.skip_bad: true leaves {} out; or repair or remove {}"
        if self.count == 1:
            ((name, reason),) = self.first
            return InputError(f"{name}: cannot be read as an image ({reason}); {advice.format('it', 'it')}")
        named = ", ".join(f"{name} ({reason})" for name, reason in self.first)
        more = f", and {self.count - NAMED:,} others," if self.count > NAMED else ","
        return InputError(
            f"{self.count:,} of {self.total:,} images cannot be read: {named}{more} all named in {self.path}; "
            f"{advice.format('them', 'them')}"
        )


def fill(unfinished: Unfinished, files: Files, settings: PrepareData, name: str, workers: int) -> Unread:
    """Fill the arrays with all pictures that they still lack; returns those that cannot be read.

    Raises InputError for a picture of another size or number of channels than the first one.
    """

    def work(item: tuple[Picture, Load]) -> tuple[Picture, np.ndarray | None, str]:
        picture, load = item
        try:
            return picture, fitted(decode(load(), files.mode), settings), ""
        except Unreadable as error:
            return picture, None, str(error)

    store, total = files.store, sum(unfinished.counts)
    unread = Unread(unfinished.list, total)
    missing = store.fetch(unfinished.missing(files.listing.pictures(store.in_place_order)))
    with Progress(name, total, "images", unfinished.written()) as progress:
        for picture, image, reason in in_threads(work, missing, workers):
            if image is None:
                unread.add(store.shown(picture), reason)
            else:
                unfinished.begin(image.shape)
                if image.shape != unfinished.shape:
                    raise mismatch(image, unfinished.shape, store.shown(picture))
                unfinished.write(picture, image)
            progress.advance()
    return unread
