"""Converts between uint8 images (N, H, W, C) and float tensors (N, C, H, W) in [-1, 1]."""

import numpy as np
import torch
from torch import Tensor

MAX_PSNR = 100.0  # dB, also of equal images


def to_model_range(images: Tensor) -> Tensor:
    """Maps uint8 0..255 to float32 [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Maps float [-1, 1] to uint8 0..255, rounded and clamped; a plain cast would wrap 256 to 0."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_images(images: Tensor) -> np.ndarray:
    """Maps float (N, C, H, W) in [-1, 1] to uint8 (N, H, W, C), the layout of files."""
    return to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()


def to_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Copies uint8 (N, H, W, C) to a uint8 tensor (N, C, H, W) on the device."""
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).contiguous()


def psnr_of(mse: Tensor) -> Tensor:
    """Returns the peak signal-to-noise ratio in dB, at most 100, of mean squared errors of images in [-1, 1] (peak 2)."""
    return (10 * torch.log10(4 / mse)).clamp(max=MAX_PSNR)
