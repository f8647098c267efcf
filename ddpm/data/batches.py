"""Batches from a tensor that already lies on the device, in an order that is a function of (seed, images seen)."""

import numpy as np
import torch
from torch import Tensor

from ddpm.runtime import seed_of


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


class Batches:
    """Endless shuffled batches of (images float32 (B, C, H, W) in [-1, 1], labels int64 (B,)).

    Epoch e is a permutation drawn from (seed, e), and batches run across the ends of epochs: the batch after n images is the
    same whether training was interrupted or not, and whatever the batch size.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, seed: int, device: torch.device, flip: bool = False):
        self.images = to_tensor(images, device)
        self.labels = torch.tensor(labels, device=device)
        self.seed, self.device, self.flip = seed, device, flip
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, seen: int, count: int) -> Tensor:
        """Indices (count,) of the images after the first `seen`."""
        size, parts = len(self.images), []
        while count:
            epoch, start = divmod(seen, size)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
                self._epoch, self._order = epoch, torch.randperm(size, generator=generator)
            part = self._order[start : start + count]
            parts.append(part)
            seen, count = seen + len(part), count - len(part)
        return torch.cat(parts)

    def batch(self, seen: int, count: int) -> tuple[Tensor, Tensor]:
        """The batch after `seen` images; each image is flipped left to right with probability 1/2 if `flip` is set."""
        index = self.indices(seen, count).to(self.device)
        images = to_model_range(self.images[index])
        if self.flip:
            # Drawn from the default generator, which the training loop seeds before every step.
            chosen = torch.rand(count, 1, 1, 1, device=self.device) < 0.5
            images = torch.where(chosen, images.flip(-1), images)
        return images, self.labels[index]
