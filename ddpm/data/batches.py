"""Training batches, in an order that is a function of (seed, images seen), from images on the device or on disk."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import psutil
import torch
from torch import Tensor

from ddpm import distributed
from ddpm.runtime import seed_of

# Share of the device's free memory that the training images may take; the rest is for the network and what it remembers.
SHARE = 0.25


def to_model_range(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float [-1, 1] -> uint8 0..255, rounded and clamped (a plain cast would wrap around: 256 becomes 0)."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_images(images: Tensor) -> np.ndarray:
    """float (N, C, H, W) in [-1, 1] -> uint8 (N, H, W, C), as files hold them."""
    return to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()


def to_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (N, H, W, C) -> uint8 tensor (N, C, H, W) on the device."""
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).contiguous()


def fits(size: int, device: torch.device) -> bool:
    """Whether `size` bytes are less than a quarter of the device's free memory, or of this process's part of it."""
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available / distributed.local_size()
    return size < SHARE * free


class Resident:
    """Images (N, H, W, C), all on the device as uint8."""

    def __init__(self, images: np.ndarray, device: torch.device):
        self.images = torch.from_numpy(np.array(images)).to(device)

    def __call__(self, index: Tensor, following: Callable[[], Tensor]) -> Tensor:
        """uint8 (B, H, W, C) at index (B,)."""
        return self.images[index]


class Streamed:
    """Images (N, H, W, C) that stay on disk, memory-mapped; a thread reads the next batch while this one is computed on."""

    def __init__(self, images: np.ndarray, device: torch.device):
        self.images, self.device = images, device
        self.reader = ThreadPoolExecutor(1, "batches")
        self.expected, self.read = torch.empty(0, dtype=torch.int64), Future()

    def __call__(self, index: Tensor, following: Callable[[], Tensor]) -> Tensor:
        """uint8 (B, H, W, C) at index (B,), on the device; `following` gives the index of the batch to read meanwhile."""
        rows = self.read.result() if torch.equal(index, self.expected) else self._rows(index)
        self.expected = following()
        self.read = self.reader.submit(self._rows, self.expected)
        return rows.to(self.device, non_blocking=True)

    def _rows(self, index: Tensor) -> Tensor:
        # From pinned memory a GPU fetches by itself, and nothing waits.
        rows = torch.empty(len(index), *self.images.shape[1:], dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        np.take(self.images, index.numpy(), axis=0, out=rows.numpy())
        return rows


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
        rows = self.images(index, lambda: self.indices(seen + count, count)[part])
        # (B, H, W, C) in memory is what PyTorch calls channels_last.
        images = to_model_range(rows.permute(0, 3, 1, 2))
        if self.flip:
            # Drawn from the default generator, which the training loop seeds before every step, and for the whole batch.
            chosen = torch.rand(count, 1, 1, 1, device=self.device)[part] < 0.5
            images = torch.where(chosen, images.flip(-1), images)
        return images, self.labels[index.to(self.device, non_blocking=True)]
