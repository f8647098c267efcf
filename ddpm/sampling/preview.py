"""A few samples drawn during training, always from the same noise."""

import numpy as np
import torch

from ddpm.data.batches import to_uint8
from ddpm.runtime import seeded
from ddpm.sampling.denoiser import clipped
from ddpm.sampling.grid import make_grid
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.samplers import bind, sample

IMAGES = 20
STEPS = 20


def draw_preview(model: DiffusionModel) -> np.ndarray:
    """20 images, uint8 (20, H, W, C), by DDIM in 20 steps, the classes in turn."""
    height, width, channels = model.shape
    shape = (IMAGES, channels, height, width)
    x = torch.randn(shape, generator=seeded(model.device, "preview"), device=model.device)
    grid = make_grid("trailing", model.schedule.steps, min(STEPS, model.schedule.steps))
    denoiser = clipped(model.denoiser(model.balanced_labels(IMAGES)))
    *_, last = sample(denoiser, bind("ddim", eta=0.0), model.schedule, grid, x, lambda: torch.zeros_like(x))
    return to_uint8(last.x).permute(0, 2, 3, 1).cpu().numpy()
