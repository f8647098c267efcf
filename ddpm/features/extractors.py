"""Pretrained judges, from weights files that lie on disk: the FID Inception (torch-fidelity) and LPIPS's AlexNet (lpips)."""

import re
import warnings
from pathlib import Path

import lpips
import numpy as np
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ddpm.core import processes
from ddpm.core.files import InputError, first_line
from ddpm.core.progress import Progress
from ddpm.data.images import to_tensor

INCEPTION_BATCH = 50
INCEPTION_FEATURES = "2048"
INCEPTION_LOGITS = "logits_unbiased"


class Inception:
    """The Inception of the original FID, in TensorFlow's arithmetic, by torch-fidelity."""

    def __init__(self, path: Path, device: torch.device):
        self.device = device
        layers = [INCEPTION_FEATURES, INCEPTION_LOGITS]
        self.network = FeatureExtractorInceptionV3("inception-v3-compat", layers, feature_extractor_weights_path=str(path)).to(
            device
        )

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, name: str) -> tuple[np.ndarray, Tensor]:
        """uint8 images (N, H, W, C) -> features float64 (N, 2048), logits (N, 1008); gray is repeated to three channels."""
        with Progress(f"inception {name}", len(images), "images") as progress:

            def judge(start: int) -> tuple[np.ndarray, Tensor]:
                batch = to_tensor(images[start : start + INCEPTION_BATCH], self.device)
                f, z = self.network(batch.expand(-1, 3, -1, -1) if batch.shape[1] == 1 else batch)
                progress.advance(len(batch) * processes.world_size())
                return f.cpu().double().numpy(), z.cpu()

            features, logits = zip(*processes.map_over_ranks(range(0, len(images), INCEPTION_BATCH), judge), strict=True)
        return np.concatenate(features), torch.cat(logits)


def load_lpips_alex(path: Path, device: torch.device) -> torch.nn.Module:
    """LPIPS 0.1 on AlexNet: the trunk from torchvision's weights file, the linear layers from the lpips package."""
    with warnings.catch_warnings():
        # lpips builds its AlexNet through an argument that torchvision deprecates.
        warnings.simplefilter("ignore", UserWarning)
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    try:
        trunk = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged archive raises
        raise InputError(f"cannot be loaded ({first_line(error)}); replace it", key=path) from None
    # torchvision numbers the layers "features.N.weight"; lpips keeps N, behind the name of one of five slices.
    ours = network.net.state_dict()
    for key in ours:
        layer = re.fullmatch(r"slice\d\.(\d+\.\w+)", key).group(1)
        ours[key] = trunk[f"features.{layer}"]
    network.net.load_state_dict(ours)
    return network.to(device).eval().requires_grad_(False)
