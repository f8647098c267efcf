"""Noise that belongs to its image: image i draws all its noise from a seed and i, in any batch and process."""

import math

import torch
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.core.seeds import seeded
from ddpm.sampling.model import DiffusionModel

# Numbers drawn by one call for one image. It depends on the image and the grid alone, since the number of values per call can
# change the values.
BLOCK = 2**16
# A seed of the command line and the web page, or all parts of a seed, such as (seed, "ddpm").
Seed = int | tuple[int | str, ...]


class ImageNoise:
    """Returns standard normal noise (B, C, H, W) with every call, for up to `draws` calls without waste.

    Image `first + k` of the batch uses a generator seeded by (*name, first + k).
    """

    def __init__(self, device: torch.device, shape: tuple[int, int, int, int], first: int, draws: int, *name: int | str):
        self.device, self.image = device, shape[1:]
        self.generators = [seeded(device, *name, first + k) for k in range(shape[0])]
        self.length = max(1, min(draws - 1, BLOCK // math.prod(self.image)))
        # The start is drawn alone: a deterministic sampler needs no more.
        self.block, self.used = self._draw(1), 0

    def _draw(self, count: int) -> Tensor:
        """Returns (count, B, C, H, W), each (B, C, H, W) with the channels as the last axis in memory."""
        noise = [torch.randn(count, *self.image, generator=g, device=self.device) for g in self.generators]
        stacked = torch.stack(noise, dim=1)
        return stacked.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, stacked.shape[:2])

    def __call__(self) -> Tensor:
        if self.used == len(self.block):
            self.block, self.used = self._draw(self.length), 0
        self.used += 1
        return self.block[self.used - 1]


def image_noise(model: DiffusionModel, seed: Seed, count: int, draws: int, first: int = 0, use: str = "draw") -> ImageNoise:
    """Returns the noise of the images first .. first + count - 1 of a seed.

    use: part of the seed if it is an int, so that editing an image never reuses the noise that it was generated from.

    Raises InputError for a negative seed.
    """
    if isinstance(seed, int):
        if seed < 0:
            raise InputError(f"{seed} is out of range; give 0 or more", key="seed")
        seed = ("studio", use, seed)
    height, width, channels = model.shape
    return ImageNoise(model.device, (count, channels, height, width), first, draws, *seed)


def latent_of(model: DiffusionModel, seed: int) -> Tensor:
    """Returns the noise (1, C, H, W) that image 0 of a seed is generated from."""
    return image_noise(model, seed, 1, 1)()
