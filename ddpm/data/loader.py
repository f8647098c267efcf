"""Yields shuffled training batches, whose order depends on (seed, images seen), from images on the device or on disk."""

import mmap
import os
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from ddpm.core import processes
from ddpm.core.files import InputError
from ddpm.core.seeds import seed_of
from ddpm.data.images import to_model_range

# Share of the device's free memory that the training images may take; the rest is for the network and its activations.
SHARE = 0.25
# For images that stay on disk: threads that read, and batches read in advance. Disks are fast with several requests at once.
READERS, AHEAD = 8, 2
SMALL = 1024  # bytes; several images of this size share a page of the memory map


def fits(size: int, device: torch.device) -> bool:
    """Returns whether `size` bytes are less than SHARE of the free memory that this process may use on the device."""
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available / processes.local_world_size()
    return size < SHARE * free


# Returns the index (B,) of the k-th batch after the current one.
Following = Callable[[int], Tensor]


class Resident:
    """Keeps all images (N, H, W, C) on the device as uint8."""

    def __init__(self, images: np.ndarray, device: torch.device):
        self.images = torch.from_numpy(np.array(images)).to(device)

    def __call__(self, index: Tensor, following: Following) -> Tensor:
        """Returns the images uint8 (B, H, W, C) at index (B,)."""
        return self.images[index]


class Reading(NamedTuple):
    """A batch that is being read.

    index: int64 (B,).
    rows: uint8 (B, H, W, C), filled by threads.
    parts: the work of the threads.
    """

    index: Tensor
    rows: Tensor
    parts: list[Future]

    def wait(self) -> Tensor:
        """Returns the rows when they are complete."""
        for part in self.parts:
            part.result()
        return self.rows


class Streamed:
    """Reads images (N, H, W, C) from a memory map; threads read the next batches during the computation on this one."""

    def __init__(self, images: np.ndarray, device: torch.device):
        self.images, self.device = images, device
        self.readers = ThreadPoolExecutor(READERS, "batches")
        self.ahead: deque[Reading] = deque()
        self.copy = _copier(images)

    def __call__(self, index: Tensor, following: Following) -> Tensor:
        """Returns the images uint8 (B, H, W, C) at index (B,) on the device, and starts to read those of `following`."""
        while self.ahead and not torch.equal(self.ahead[0].index, index):
            self.ahead.popleft()
        current = self.ahead.popleft() if self.ahead else self._start(index)
        while len(self.ahead) < AHEAD:
            self.ahead.append(self._start(following(len(self.ahead) + 1)))
        return current.wait().to(self.device, non_blocking=True)

    def _start(self, index: Tensor) -> Reading:
        """Starts threads that read a batch in the order of its images on disk, which is fastest."""
        # A GPU copies from pinned memory without blocking this process.
        rows = torch.empty(len(index), *self.images.shape[1:], dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        parts = np.array_split(index.argsort().numpy(), READERS)
        futures = [self.readers.submit(self.copy, index.numpy()[part], rows.numpy(), part) for part in parts if len(part)]
        return Reading(index, rows, futures)


def _copier(images: np.ndarray) -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    """Returns a function (index, rows, places) that sets rows[places] = images[index].

    Where possible it uses preadv: one read per image instead of one page fault per 4 kB of the memory map.
    """
    size = images[0].nbytes
    whole = isinstance(images, np.memmap) and isinstance(images.base, mmap.mmap)
    if size < SMALL or not whole or not hasattr(os, "preadv"):

        def copy(index: np.ndarray, rows: np.ndarray, places: np.ndarray) -> None:
            rows[places] = images[index]

        return copy
    file = os.open(images.filename, os.O_RDONLY)

    def read(index: np.ndarray, rows: np.ndarray, places: np.ndarray) -> None:
        for image, place in zip(index.tolist(), places.tolist(), strict=True):
            if os.preadv(file, [rows[place]], images.offset + image * size) != size:
                raise InputError("is cut off; run `dvc repro -f prepare_data`", key=images.filename)

    weakref.finalize(read, os.close, file)
    return read


class Batches:
    """Endless shuffled batches of (images float32 (B, C, H, W) in [-1, 1], labels int64 (B,)).

    Epoch e is a permutation that depends on (seed, e), and batches may span two epochs. So the batch after n images is the same
    after a resume and for every batch size. Flips and the conversion to floats happen on the device.

    images, labels: uint8 (N, H, W, C) and int64 (N,).
    flip: mirror each image with probability 1/2.
    preload: keep the images on the device; None decides by `fits`.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        seed: int,
        device: torch.device,
        flip: bool = False,
        preload: bool | None = None,
    ):
        self.preloaded = fits(images.nbytes, device) if preload is None else preload
        # Images on disk need an index on the CPU.
        self.index_device = device if self.preloaded else torch.device("cpu")
        self.images = (Resident if self.preloaded else Streamed)(images, device)
        self.labels = torch.tensor(labels, device=device)
        self.size, self.seed, self.device, self.flip = len(images), seed, device, flip
        self._epochs: dict[int, Tensor] = {}

    def indices(self, seen: int, count: int) -> Tensor:
        """Returns the indices (count,) of the images after the first `seen`."""
        parts = []
        while count:
            epoch, start = divmod(seen, self.size)
            piece = self._order(epoch)[start : start + count]
            parts.append(piece)
            seen, count = seen + len(piece), count - len(piece)
        return torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        """Returns the permutation of an epoch, which is copied to the device once: a copy in every step would block it."""
        if epoch not in self._epochs:
            generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
            order = torch.randperm(self.size, generator=generator)
            kept = {e: o for e, o in self._epochs.items() if e == epoch - 1}  # a batch may begin in the previous epoch
            self._epochs = {**kept, epoch: order.to(self.index_device)}
        return self._epochs[epoch]

    def batch(self, seen: int, count: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Returns a part of the batch of `count` images after the first `seen`: images (B, C, H, W) and labels (B,)."""
        index = self.indices(seen, count)[part]
        rows = self.images(index, lambda k: self.indices(seen + k * count, count)[part])
        # In memory they stay (B, H, W, C), PyTorch's channels_last.
        images = to_model_range(rows.permute(0, 3, 1, 2))
        if self.flip:
            # From the default generator, which the training loop seeds before every step, and for the whole batch.
            chosen = torch.rand(count, 1, 1, 1, device=self.device)[part] < 0.5
            images = torch.where(chosen, images.flip(-1), images)
        return images, self.labels[index.to(self.device, non_blocking=True)]
