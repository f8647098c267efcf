"""Fills the arrays of a data set of files in any order, and resumes when the process was killed.

    <scratch>/prepare_data/<job>/train_images.npy    the final file with rows still missing; the same for test_
    <scratch>/prepare_data/<job>/done.npy            int64, for each image the stamp of the file whose row is written, or 0
    <scratch>/prepare_data/<job>/state.json          fingerprint, shape, ranges; written last, the others do not count without it
    <scratch>/prepare_data/<job>/unreadable.txt      pictures that could not be read, with the reason
    <scratch>/prepare_data/<job>.lock                held by the one process that may use the folder

The settings and the path of the pictures name the job. The fingerprint adds the names of all pictures and the code: if it
differs, preparation starts from the beginning. A picture that has changed has another stamp and is read again.
"""

import hashlib
import json
import os
import shutil
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL

from ddpm.core.files import InputError, read_json, remove, sha256, write_json, writing
from ddpm.core.scratch import hold, scratch_root
from ddpm.datasets.index import Files, ImageIndex, Picture

STATE, DONE, UNREADABLE = "state.json", "done.npy", "unreadable.txt"
SAVE_SECONDS = 5.0


def write_header(file: BinaryIO, count: int, shape: Sequence[int]) -> None:
    """Writes the header of a .npy file of uint8 (count, *shape)."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)})


class PartialArrays:
    """The arrays of one data set while they are filled; `with` holds their lock and saves the written rows at the end.

    files: the pictures.
    names: the file names of the arrays of both splits.
    made_with: the settings that decide the content.
    fresh: discard rows that were written before.

    `ranges` are the values that become 0 and 255 in pictures of more than 8 bits, by the type of the values; {} for none.
    Raises InputError if another process prepares the same.
    """

    def __init__(self, files: Files, names: Sequence[str], made_with: dict, fresh: bool):
        job = hashlib.sha256(json.dumps([made_with, str(files.store.where.resolve())], sort_keys=True).encode()).hexdigest()
        code = [sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
        pictures = [files.index.digest, files.index.counts, files.stamp]
        identity = json.dumps([made_with, pictures, code, PIL.__version__, np.__version__])
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        self.counts = files.index.counts
        self.folder = scratch_root() / "prepare_data" / job
        self.paths = [self.folder / name for name in names]
        self.unreadable = self.folder / UNREADABLE
        self.shape: tuple[int, int, int] | None = None
        self.ranges: dict[str, list[float]] = {}
        self.arrays, self.starts, self.ends = [], [], []
        self.unsaved = array("q")  # index and stamp of each row written since the last save
        self.lock = hold(self.folder, "another preparation of the same images with the same settings")
        try:
            self._open(files.index, fresh)
        except BaseException:
            self.lock.release()
            raise

    def _open(self, index: ImageIndex, fresh: bool) -> None:
        """Keeps rows that were written before if they are of these pictures, and prints how many."""
        remove(self.unreadable)
        if fresh or not self._fits():
            if fresh and (self.folder / STATE).exists():
                print("DDPM_FRESH is set: discarding the images prepared before", flush=True)
            self.clear()
            return
        self._map()
        for picture in index.pictures():
            if self.done[self._index(picture)] != picture.stamp:
                self.done[self._index(picture)] = 0
        if not self.written():
            self.clear()
            return
        done = f"{self.written():,} of {sum(self.counts):,}"
        print(f"resuming: {done} images were prepared before (DDPM_FRESH=1 discards them)", flush=True)

    def _fits(self) -> bool:
        try:
            state = read_json(self.folder / STATE, "prepare_data")
            self.shape, self.ranges = tuple(state["shape"]), state["ranges"]
            done = np.load(self.folder / DONE, mmap_mode="r")
            same = state["fingerprint"] == self.fingerprint and done.shape == (sum(self.counts),)
            return same and all(path.exists() for path in self.paths)
        except (InputError, KeyError, TypeError, OSError, ValueError):
            return False

    def begin(self, shape: tuple[int, int, int]) -> None:
        """Makes the files for images uint8 (H, W, C) of this shape, unless they exist."""
        if self.arrays:
            return
        self.shape = shape
        for path, count in zip(self.paths, self.counts, strict=True):
            with writing(path), open(path, "wb") as file:
                write_header(file, count, shape)
                file.truncate(file.tell() + count * int(np.prod(shape)))
        with writing(self.folder / DONE):
            # In full: writing to a memory map on a full disk kills the process.
            np.save(self.folder / DONE, np.zeros(sum(self.counts), np.int64))
        self._write_state()
        self._map()

    def _map(self) -> None:
        self.mapped = np.load(self.folder / DONE, mmap_mode="r+")
        self.done = np.asarray(self.mapped)  # the same memory, with faster access
        for path in self.paths:
            file = open(path, "rb+")  # noqa: SIM115
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            self.arrays.append(file)
            self.starts.append(file.tell())
        self.ends = list(self.starts)
        self.saved = time.monotonic()

    def scale_by(self, ranges: dict[str, list[float]]) -> None:
        """Sets the ranges by which rows are scaled, and discards the rows of other ones."""
        if self.ranges and ranges != self.ranges:
            self.clear()
        self.ranges = ranges
        if self.arrays:
            self._write_state()

    def _write_state(self) -> None:
        write_json(self.folder / STATE, {"fingerprint": self.fingerprint, "shape": self.shape, "ranges": self.ranges})

    def missing(self, pictures: Iterable[Picture]) -> Iterator[Picture]:
        """Yields the pictures whose rows are not written."""
        for picture in pictures:
            if not self.arrays or not self.done[self._index(picture)]:
                yield picture

    def written(self) -> int:
        """Returns the number of saved rows."""
        return int(np.count_nonzero(self.done)) if self.arrays else 0

    def write(self, picture: Picture, image: np.ndarray) -> None:
        """Writes the row of a picture, an image of the shape. Raises InputError if the disk is full."""
        split = picture.split
        file, row = self.arrays[split], self.starts[split] + picture.position * image.size
        # Not through a memory map: on a full disk that kills the process.
        with writing(self.paths[split]):
            if row != self.ends[split]:  # a seek flushes the buffer
                file.seek(row)
            file.write(image.tobytes())
        self.ends[split] = row + image.size
        self.unsaved.extend((self._index(picture), picture.stamp))
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Flushes the written rows to the disk, then marks them as done."""
        for path, file in zip(self.paths, self.arrays, strict=True):
            with writing(path):
                file.flush()
                os.fsync(file.fileno())
        if self.unsaved:
            index, stamps = np.array(self.unsaved).reshape(-1, 2).T
            self.done[index] = stamps
            self.mapped.flush()
        self.unsaved, self.saved = array("q"), time.monotonic()

    def _index(self, picture: Picture) -> int:
        return picture.position + picture.split * self.counts[0]

    def present(self, split: int) -> np.ndarray:
        """Returns which rows of a split are written, bool (N,)."""
        first = split * self.counts[0]
        return self.done[first : first + self.counts[split]] != 0

    def clear(self) -> None:
        """Removes everything that was written."""
        self._close()
        self.shape, self.ranges = None, {}
        for path in (self.folder / STATE, self.folder / DONE, *self.paths):
            remove(path)

    def discard(self) -> None:
        """Removes the folder of a complete preparation."""
        self.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _close(self) -> None:
        for file in self.arrays:
            try:
                file.close()
            except OSError:  # rows for which a full disk has no room; writing them has raised the error
                pass
        self.arrays, self.unsaved = [], array("q")

    def __enter__(self) -> "PartialArrays":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.arrays:
                self.save()
        finally:
            self._close()
            self.lock.release()
