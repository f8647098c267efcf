"""A few samples drawn during training, always from the same noise."""

import numpy as np

from ddpm.data.batches import to_images
from ddpm.sampling.denoiser import thresholded
from ddpm.sampling.grid import make_grid
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.noise import ImageNoise
from ddpm.sampling.samplers import euler_step, sample

IMAGES = 20
STEPS = 20


def draw_preview(model: DiffusionModel) -> np.ndarray:
    """20 images, uint8 (20, H, W, C), by DDIM with eta = 0 in 20 steps, the classes in turn."""
    height, width, channels = model.shape
    noise = ImageNoise(model.device, (IMAGES, channels, height, width), 0, 1, "preview")
    grid = make_grid("trailing", model.schedule, min(STEPS, model.schedule.steps))
    denoiser = thresholded(model.denoiser(model.balanced_labels(IMAGES)))
    *_, last = sample(denoiser, euler_step, model.schedule, grid, noise(), noise)
    return to_images(last.x)
