"""LPIPS: distance between two images in the feature maps of a network (Zhang et al. 2018)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm.judge.classifier import Classifier

LPIPS_SIZE = 64  # AlexNet needs at least 31 pixels


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
