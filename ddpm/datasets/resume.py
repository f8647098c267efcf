"""Arrays that are being prepared from files: filled in any order, and gone on with when the process was killed.

    <scratch>/prepare_data/<job>/train_images.npy    the final file, rows still missing; the same for test_
    <scratch>/prepare_data/<job>/done.npy            int64, for each image the stamp of the file whose row is written, or 0
    <scratch>/prepare_data/<job>/state.json          fingerprint and shape; written last, so without it nothing else counts
    <scratch>/prepare_data/<job>/unreadable.txt      pictures that could not be read, with the reason
    <scratch>/prepare_data/<job>.lock                held by the one process that may use the folder

The job is named by the settings and the place of the pictures. The fingerprint adds their names and the code: another one starts
afresh. A single picture that has changed has another stamp, and is read again.
"""

import hashlib
import json
import os
import shutil
import time
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import PIL

from ddpm.core.files import InputError, read_json, remove, sha256, write_json, writing
from ddpm.core.scratch import hold, scratch_root
from ddpm.datasets.index import Files, ImageIndex, Picture

STATE, DONE, UNREADABLE = "state.json", "done.npy", "unreadable.txt"
SAVE_SECONDS = 5.0


class PartialArrays:
    """The arrays of one data set; `with` holds their lock, and keeps what was written when the block is left.

    names: of the array files of both splits. made_with: the settings that decide what is in them. fresh: forget what was there.
    Raises InputError if another process works on the same.
    """

    def __init__(self, files: Files, names: list[str], made_with: dict, fresh: bool):
        job = hashlib.sha256(json.dumps([made_with, str(files.store.where.resolve())], sort_keys=True).encode()).hexdigest()
        code = [sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
        listing = [files.listing.digest, files.listing.counts, files.stamp]
        found = json.dumps([made_with, listing, code, PIL.__version__, np.__version__])
        self.fingerprint = hashlib.sha256(found.encode()).hexdigest()
        self.counts = files.listing.counts
        self.folder = scratch_root() / "prepare_data" / job
        self.paths = [self.folder / name for name in names]
        self.list = self.folder / UNREADABLE
        self.shape: tuple[int, int, int] | None = None
        self.arrays, self.starts, self.ends = [], [], []
        self.waiting = array("q")  # index and stamp of each row that is to be marked
        self.lock = hold(self.folder, "another preparation of the same images with the same settings")
        try:
            self._open(files.listing, fresh)
        except BaseException:
            self.lock.release()
            raise

    def _open(self, listing: ImageIndex, fresh: bool) -> None:
        """Take up what was written before, if it is of these pictures, and say so."""
        remove(self.list)
        if fresh or not self._fits():
            if fresh and (self.folder / STATE).exists():
                print("DDPM_FRESH is set: discarding the images prepared before", flush=True)
            self.forget()
            return
        self._map()
        for picture in listing.pictures():
            if self.done[self._index(picture)] != picture.stamp:
                self.done[self._index(picture)] = 0
        if not self.written():
            self.forget()
            return
        print(f"{self.written():,} of {sum(self.counts):,} images were prepared before; going on from there", flush=True)

    def _fits(self) -> bool:
        try:
            state = read_json(self.folder / STATE, "prepare_data")
            self.shape = tuple(state["shape"])
            done = np.load(self.folder / DONE, mmap_mode="r")
            same = state["fingerprint"] == self.fingerprint and done.shape == (sum(self.counts),)
            return same and all(path.exists() for path in self.paths)
        except (InputError, KeyError, TypeError, OSError, ValueError):
            return False

    def begin(self, shape: tuple[int, int, int]) -> None:
        """Make the files for images of this shape, uint8 (H, W, C), unless they are there."""
        if self.arrays:
            return
        self.shape = shape
        for path, count in zip(self.paths, self.counts, strict=True):
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
            with writing(path), open(path, "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                file.truncate(file.tell() + count * int(np.prod(shape)))
        with writing(self.folder / DONE):
            # Written in full: what is mapped must have its room on the disk, or the process dies.
            np.save(self.folder / DONE, np.zeros(sum(self.counts), np.int64))
        write_json(self.folder / STATE, {"fingerprint": self.fingerprint, "shape": shape})
        self._map()

    def _map(self) -> None:
        self.mapped = np.load(self.folder / DONE, mmap_mode="r+")
        self.done = np.asarray(self.mapped)  # the same memory, faster to look at
        for path in self.paths:
            file = open(path, "rb+")  # noqa: SIM115
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            self.arrays.append(file)
            self.starts.append(file.tell())
        self.ends = list(self.starts)
        self.saved = time.monotonic()

    def missing(self, pictures: Iterable[Picture]) -> Iterator[Picture]:
        """Those of the pictures whose rows are not written."""
        for picture in pictures:
            if not self.arrays or not self.done[self._index(picture)]:
                yield picture

    def written(self) -> int:
        """How many rows were written before."""
        return int(np.count_nonzero(self.done)) if self.arrays else 0

    def write(self, picture: Picture, image: np.ndarray) -> None:
        """Put an image of the shape in its place. Raises InputError if the disk is full."""
        split = picture.split
        file, row = self.arrays[split], self.starts[split] + picture.position * image.size
        # Not through mapped memory, where a full disk kills the process.
        with writing(self.paths[split]):
            if row != self.ends[split]:  # a seek empties the buffer
                file.seek(row)
            file.write(image.tobytes())
        self.ends[split] = row + image.size
        self.waiting.extend((self._index(picture), picture.stamp))
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Have the disk hold the rows that were written; only then are they marked as done."""
        for path, file in zip(self.paths, self.arrays, strict=True):
            with writing(path):
                file.flush()
                os.fsync(file.fileno())
        if self.waiting:
            index, stamps = np.array(self.waiting).reshape(-1, 2).T
            self.done[index] = stamps
            self.mapped.flush()
        self.waiting, self.saved = array("q"), time.monotonic()

    def _index(self, picture: Picture) -> int:
        return picture.position + picture.split * self.counts[0]

    def present(self, split: int) -> np.ndarray:
        """Which rows of a split are written, bool (N,)."""
        first = split * self.counts[0]
        return self.done[first : first + self.counts[split]] != 0

    def forget(self) -> None:
        """Remove all that was written."""
        self._close()
        self.shape = None
        for path in (self.folder / STATE, self.folder / DONE, *self.paths):
            remove(path)

    def discard(self) -> None:
        """The preparation is complete: remove what is left of it."""
        self.forget()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _close(self) -> None:
        for file in self.arrays:
            try:
                file.close()
            except OSError:  # of rows that a full disk has no room for, which was said when they were written
                pass
        self.arrays, self.waiting = [], array("q")

    def __enter__(self) -> "PartialArrays":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.arrays:
                self.save()
        finally:
            self._close()
            self.lock.release()
