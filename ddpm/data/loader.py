"""Training batches, in an order that is a function of (seed, images seen), from images on the device or on disk."""

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

# Share of the device's free memory that the training images may take; the rest is for the network and what it remembers.
SHARE = 0.25
# Of images that stay on disk: threads that read, and batches that are read ahead. A disk is fast when several wait for it.
READERS, AHEAD = 8, 2
SMALL = 1024  # bytes of an image, of which many lie in a page that the system reads


def fits(size: int, device: torch.device) -> bool:
    """Whether `size` bytes are less than a quarter of the device's free memory, or of this process's part of it."""
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available / processes.local_world_size()
    return size < SHARE * free


# Gives the index (B,) of the k-th batch after the current one.
Following = Callable[[int], Tensor]


class Resident:
    """Images (N, H, W, C), all on the device as uint8."""

    def __init__(self, images: np.ndarray, device: torch.device):
        self.images = torch.from_numpy(np.array(images)).to(device)

    def __call__(self, index: Tensor, following: Following) -> Tensor:
        """uint8 (B, H, W, C) at index (B,)."""
        return self.images[index]


class Reading(NamedTuple):
    """A batch that is being read: its index (B,), the rows uint8 (B, H, W, C), and the threads that fill them."""

    index: Tensor
    rows: Tensor
    parts: list[Future]

    def wait(self) -> Tensor:
        for part in self.parts:
            part.result()
        return self.rows


class Streamed:
    """Images (N, H, W, C) that stay on disk, memory-mapped; threads read the next batches while this one is computed on."""

    def __init__(self, images: np.ndarray, device: torch.device):
        self.images, self.device = images, device
        self.readers = ThreadPoolExecutor(READERS, "batches")
        self.ahead: deque[Reading] = deque()
        self.copy = _copier(images)

    def __call__(self, index: Tensor, following: Following) -> Tensor:
        """uint8 (B, H, W, C) at index (B,), on the device; `following` gives the batches to read meanwhile."""
        while self.ahead and not torch.equal(self.ahead[0].index, index):
            self.ahead.popleft()
        current = self.ahead.popleft() if self.ahead else self._start(index)
        while len(self.ahead) < AHEAD:
            self.ahead.append(self._start(following(len(self.ahead) + 1)))
        return current.wait().to(self.device, non_blocking=True)

    def _start(self, index: Tensor) -> Reading:
        """Have a batch read, in the order in which its images lie, in which disks are fastest."""
        # From pinned memory a GPU fetches by itself, and nothing waits.
        rows = torch.empty(len(index), *self.images.shape[1:], dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        parts = np.array_split(index.argsort().numpy(), READERS)
        futures = [self.readers.submit(self.copy, index.numpy()[part], rows.numpy(), part) for part in parts if len(part)]
        return Reading(index, rows, futures)


def _copier(images: np.ndarray) -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    """A function (index, rows, places) that sets rows[places] = images[index], from the images' file if they have one.

    What is not in memory is read in one piece for an image so; through the memory map it would come page by page.
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

    Epoch e is a permutation drawn from (seed, e), and batches run across the ends of epochs: the batch after n images is the
    same whether training was interrupted or not, and whatever the batch size.

    preload: hold the images on the device; None: if they fit (`fits`). Flips and the change to floats happen on the device.
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
        # What stays on disk is looked up there, by an index on the CPU.
        self.index_device = device if self.preloaded else torch.device("cpu")
        self.images = (Resident if self.preloaded else Streamed)(images, device)
        self.labels = torch.tensor(labels, device=device)
        self.size, self.seed, self.device, self.flip = len(images), seed, device, flip
        self._epochs: dict[int, Tensor] = {}

    def indices(self, seen: int, count: int) -> Tensor:
        """Indices (count,) of the images after the first `seen`."""
        parts = []
        while count:
            epoch, start = divmod(seen, self.size)
            piece = self._order(epoch)[start : start + count]
            parts.append(piece)
            seen, count = seen + len(piece), count - len(piece)
        return torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        """The permutation of an epoch, moved to the device once: a copy in every step would make it wait."""
        if epoch not in self._epochs:
            generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
            order = torch.randperm(self.size, generator=generator)
            kept = {e: o for e, o in self._epochs.items() if e == epoch - 1}  # a batch may begin in the epoch before
            self._epochs = {**kept, epoch: order.to(self.index_device)}
        return self._epochs[epoch]

    def batch(self, seen: int, count: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Of the batch of `count` images after the first `seen`, this part; each image is flipped left to right with
        probability 1/2 if `flip` is set."""
        index = self.indices(seen, count)[part]
        rows = self.images(index, lambda k: self.indices(seen + k * count, count)[part])
        # (B, H, W, C) in memory is what PyTorch calls channels_last.
        images = to_model_range(rows.permute(0, 3, 1, 2))
        if self.flip:
            # Drawn from the default generator, which the training loop seeds before every step, and for the whole batch.
            chosen = torch.rand(count, 1, 1, 1, device=self.device)[part] < 0.5
            images = torch.where(chosen, images.flip(-1), images)
        return images, self.labels[index.to(self.device, non_blocking=True)]
