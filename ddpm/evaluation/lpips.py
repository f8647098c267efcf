"""LPIPS: the distance of two images in a network's feature maps (Zhang et al. 2018); diversity: LPIPS between random samples."""

from collections.abc import Callable
from functools import partial

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
PAIRS = 500  # of diversity


@torch.inference_mode()
def lpips_classifier(classifier: Classifier, a: Tensor, b: Tensor) -> Tensor:
    """Returns LPIPS's formula on the classifier, (B,), for images (B, C, H, W) in [-1, 1].

    The feature vector of every pixel is scaled to length 1; squared differences are averaged over channels (uniform weights) and
    pixels, and summed over the four layers. The scale is not that of LPIPS: values are comparable only with each other.
    """
    total = torch.zeros(len(a), dtype=torch.float64)
    for fa, fb in zip(classifier.maps(a), classifier.maps(b), strict=True):
        difference = F.normalize(fa.cpu().double(), dim=1, eps=1e-10) - F.normalize(fb.cpu().double(), dim=1, eps=1e-10)
        total += difference.square().mean((1, 2, 3))
    return total


@torch.inference_mode()
def lpips_alex(network: torch.nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Returns LPIPS by AlexNet, (B,), for images (B, C, H, W) in [-1, 1]; they are resized to 64 pixels (bilinear), gray to RGB.

    Raises ValueError for images outside [-1, 1], which lpips would accept and score wrongly.
    """
    for images in (a, b):
        if images.min() < -1 or images.max() > 1:
            raise ValueError("images must lie in [-1, 1]")
    a, b = (F.interpolate(images.expand(-1, 3, -1, -1), (LPIPS_SIZE, LPIPS_SIZE), mode="bilinear") for images in (a, b))
    return network(a, b).cpu().double().flatten()


class Perceptual:
    """Mean LPIPS of pairs of images, on the classifier, and on AlexNet if its weights file is there."""

    def __init__(self, classifier: Classifier, device: torch.device):
        """Raises InputError for a damaged weights file."""
        self.classifier = classifier
        path = find_weights(ALEXNET)
        self.alex = None if path is None else load_lpips_alex(path, device)

    def __call__(self, a: Tensor, b: Tensor) -> dict[str, float | str]:
        """Returns {classifier (if its status is ok), alex (if there are weights), status} for images (N, C, H, W) in [-1, 1]."""
        distances = {"classifier": partial(lpips_classifier, self.classifier)} if self.classifier.status == "ok" else {}
        if self.alex is not None:
            distances["alex"] = partial(lpips_alex, self.alex)
        scores = {name: float(torch.cat(by_batches(distance, a, b)).mean()) for name, distance in distances.items()}
        return scores | (MISSING if self.alex is None else {"status": "ok"})


class Diversity:
    """Mean LPIPS of random pairs of samples over that of equally many pairs of test images; 1 where they vary equally."""

    def __init__(self, classifier: Classifier, test: np.ndarray, n: int, seed: int, device: torch.device):
        """test: uint8 (M, H, W, C). n: images in a set; n // 2 pairs are used, at most 500.

        Raises InputError if LPIPS between all test images is 0, or for a damaged weights file of AlexNet.
        """
        self.pairs, self.seed, self.device = min(PAIRS, n // 2), seed, device
        self.lpips = Perceptual(classifier, device)
        self.real = self._lpips_of_pairs(test)
        if 0 in self.real.values():
            raise InputError("LPIPS between test images is 0, so that of samples cannot be normalized", key="diversity")

    def __call__(self, images: np.ndarray) -> dict[str, float | str]:
        """Returns {classifier (if ok), alex (if there are weights), status} for samples uint8 (N, H, W, C), N >= n."""
        scores = self._lpips_of_pairs(images)
        return {name: score if name == "status" else score / self.real[name] for name, score in scores.items()}

    def _lpips_of_pairs(self, images: np.ndarray) -> dict[str, float | str]:
        # Each image is in one pair, so that the pairs are independent.
        one, other = disjoint_sets(len(images), self.pairs, self.seed)[:2]
        return self.lpips(*(to_model_range(to_tensor(images[part], self.device)) for part in (one, other)))


def by_batches(compute: Callable[[Tensor, Tensor], Tensor], images: Tensor, others: Tensor) -> list[Tensor]:
    """Returns compute(images, others) of every batch, on the CPU. The batches are distributed over the processes."""
    pairs = list(zip(images.split(BATCH), others.split(BATCH), strict=True))
    return processes.map_over_ranks(pairs, lambda pair: compute(*pair).cpu())
