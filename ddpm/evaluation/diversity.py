"""How much samples differ from each other: LPIPS between random pairs, beside that between real images."""

import numpy as np
import torch
from torch import Tensor

from ddpm.data.batches import to_model_range, to_tensor
from ddpm.evaluation.distances import disjoint_sets
from ddpm.evaluation.perceptual import Perceptual
from ddpm.files import InputError
from ddpm.judge.classifier import Classifier

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
                raise InputError(f"diversity: all test images look alike to the judge ({name}), so nothing can be held to them")

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
