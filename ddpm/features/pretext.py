"""What the network learns where the images have fewer than two classes, and the check that its features tell images apart."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.data.prepared import Prepared
from ddpm.features.frechet import fit_gaussian, frechet

CLASSES = "classes"
VIEWS = 4
# A corrupted set must be this many times as far from the training images as the test images are.
MIN_RATIO = 3.0


def trained_on(data: Prepared) -> str:
    """Returns what the network learns to predict: "classes", or "rotations" or "flips" where there are fewer than two classes."""
    if len(data.class_names) > 1:
        return CLASSES
    height, width, _ = data.shape
    return "rotations" if height == width else "flips"


def views(images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns images (B, C, H, W) in four orientations, (4B, C, H, W), and the number of each orientation, int64 (4B,).

    Rotations by multiples of 90 degrees (Gidaris et al. 2018); for H != W the four flips, which keep the shape.
    """
    if images.shape[2] == images.shape[3]:
        turned = [images.rot90(k, (2, 3)) for k in range(VIEWS)]
    else:
        turned = [images, images.flip(3), images.flip(2), images.flip((2, 3))]
    return torch.cat(turned), torch.arange(VIEWS, device=images.device).repeat_interleave(len(images))


def corrupted(data: Prepared, seed: int) -> dict[str, np.ndarray]:
    """Returns test images uint8 (N, H, W, C) with noise as strong as their contrast, with shuffled pixels, and their mean."""
    images, rng = data.test.images, np.random.default_rng(seed)
    noise = rng.normal(0, max(float(np.std(images)), 1), images.shape)
    pixels = images.reshape(len(images), -1, images.shape[-1])
    order = rng.permuted(np.tile(np.arange(pixels.shape[1]), (len(images), 1)), axis=1)
    return {
        "noisy": (images + noise).round().clip(0, 255).astype(np.uint8),
        "shuffled": np.take_along_axis(pixels, order[..., None], 1).reshape(images.shape),
        "mean": np.broadcast_to(images.mean(0).round().astype(np.uint8), images.shape),
    }


def check_features(extract: Callable[[np.ndarray], np.ndarray], data: Prepared, seed: int) -> dict[str, float]:
    """Returns the Fréchet distances of the test images ("real") and of `corrupted` sets to the training images.

    extract: images uint8 (N, H, W, C) -> features float64 (N, D). Raises InputError for fewer than 2 images in a split.
    """
    for name, split in (("training", data.train), ("test", data.test)):
        if len(split.images) < 2:
            raise InputError(f"1 {name} image is too few for scores; use at least 2", key="train_classifier")
    train = fit_gaussian(extract(data.train.images))
    sets = {"real": data.test.images, **corrupted(data, seed)}
    return {name: frechet(fit_gaussian(extract(images)), train) for name, images in sets.items()}


def failed(distances: dict[str, float]) -> list[str]:
    """Returns the corrupted sets that `check_features` found not clearly farther away than the test images."""
    return [name for name, value in distances.items() if name != "real" and not value > MIN_RATIO * distances["real"]]
