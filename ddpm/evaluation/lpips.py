"""LPIPS: distance between two images in the feature maps of a network (Zhang et al. 2018).

How much samples differ from each other: LPIPS between random pairs, beside that between real images."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm.core import processes
from ddpm.core.files import InputError
from ddpm.data.images import to_model_range, to_tensor
from ddpm.evaluation.fid import disjoint_sets
from ddpm.features.classifier import Classifier
from ddpm.features.extractors import load_lpips_alex
from ddpm.features.pretrained import ALEXNET, MISSING, find_weights

LPIPS_SIZE = 64  # AlexNet needs at least 31 pixels
BATCH = 250


def by_batches(compute: Callable[[Tensor, Tensor], Tensor], images: Tensor, others: Tensor) -> list[Tensor]:
    """compute(images, others) of every batch, on the CPU; the batches are shared by the processes."""
    pairs = list(zip(images.split(BATCH), others.split(BATCH), strict=True))
    return processes.map_over_ranks(pairs, lambda pair: compute(*pair).cpu())


class Perceptual:
    """Mean LPIPS of pairs: on the judge, and by AlexNet where its weights file lies."""

    def __init__(self, judge: Classifier, device: torch.device):
        """Raises InputError for a weights file that is damaged."""
        self.judge = judge
        path = find_weights(ALEXNET)
        self.alex = None if path is None else load_lpips_alex(path, device)

    def __call__(self, a: Tensor, b: Tensor) -> dict[str, float | str]:
        """{classifier, alex (where there are weights), status} of images a and b, (N, C, H, W) in [-1, 1]."""
        scores = {"classifier": self._mean(lambda x, y: lpips_classifier(self.judge, x, y), a, b)}
        if self.alex is None:
            return {**scores, **MISSING}
        return {**scores, "alex": self._mean(lambda x, y: lpips_alex(self.alex, x, y), a, b), "status": "ok"}

    def _mean(self, distance: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> float:
        return float(torch.cat(by_batches(distance, a, b)).mean())


@torch.inference_mode()
def lpips_classifier(judge: Classifier, a: Tensor, b: Tensor) -> Tensor:
    """LPIPS's formula on the judge: (B,) from images (B, C, H, W) in [-1, 1].

    Every pixel's feature vector is scaled to length 1; squared differences are averaged over channels (uniform weights) and
    pixels, and summed over the four layers. It has the formula of LPIPS, not its scale: compare it with itself alone.
    """
    total = torch.zeros(len(a), dtype=torch.float64)
    for fa, fb in zip(judge.maps(a), judge.maps(b), strict=True):
        difference = F.normalize(fa.cpu().double(), dim=1, eps=1e-10) - F.normalize(fb.cpu().double(), dim=1, eps=1e-10)
        total += difference.square().mean((1, 2, 3))
    return total


@torch.inference_mode()
def lpips_alex(network: torch.nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """LPIPS by AlexNet, (B,), from images (B, C, H, W) in [-1, 1]: as three channels, resized to 64 pixels (bilinear).

    Raises ValueError for images outside [-1, 1], which LPIPS would accept and score wrongly.
    """
    for images in (a, b):
        if images.min() < -1 or images.max() > 1:
            raise ValueError("images must lie in [-1, 1]")
    return network(_as_rgb(a), _as_rgb(b)).cpu().double().flatten()


def _as_rgb(images: Tensor) -> Tensor:
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    return F.interpolate(images, size=(LPIPS_SIZE, LPIPS_SIZE), mode="bilinear", align_corners=False)


PAIRS = 500
DISTANCES = ("classifier", "alex")


class Diversity:
    """Mean LPIPS of random pairs of samples over that of as many random pairs of test images, 1 where they vary alike."""

    def __init__(self, judge: Classifier, test: np.ndarray, n: int, seed: int, device: torch.device):
        """test: uint8 (M, H, W, C); up to 500 pairs are drawn of n images.

        Raises InputError for test images that are all alike to a judge, or for a damaged weights file of AlexNet.
        """
        self.pairs, self.seed, self.device = min(PAIRS, n // 2), seed, device
        self.lpips = Perceptual(judge, device)
        self.real = self._of(test)
        for name in DISTANCES:
            if self.real.get(name) == 0:
                raise InputError(
                    f"all test images look alike to the judge ({name}), so nothing can be held to them", key="diversity"
                )

    def __call__(self, images: np.ndarray) -> dict[str, float | str]:
        """{classifier, alex (where there are weights), status} of samples uint8 (N, H, W, C), N >= n."""
        found = self._of(images)
        return found | {name: found[name] / self.real[name] for name in DISTANCES if name in found}

    def _of(self, images: np.ndarray) -> dict[str, float | str]:
        # Each image stands in one pair, so that the pairs are independent.
        one, other = disjoint_sets(len(images), self.pairs, self.seed)[:2]
        return self.lpips(self._load(images[one]), self._load(images[other]))

    def _load(self, images: np.ndarray) -> Tensor:
        return to_model_range(to_tensor(images, self.device))
