"""A small grid of samples drawn during training, always from the same noise."""

import numpy as np
import torch

from ddpm.data.batches import to_uint8
from ddpm.diffusion.schedule import make_schedule
from ddpm.networks.unet import UNet
from ddpm.runtime import seeded
from ddpm.sampling.denoiser import clipped, network_denoiser
from ddpm.sampling.grid import make_grid
from ddpm.sampling.samplers import bind, sample

IMAGES = 20
STEPS = 20


def draw_preview(network: UNet, config: dict, device: torch.device) -> np.ndarray:
    """20 images, uint8 (20, H, W, C), by DDIM in 20 steps, the classes in turn."""
    schedule = make_schedule(config["diffusion"]["schedule"], config["diffusion"]["timesteps"])
    height, width, channels = config["data"]["shape"]
    labels = torch.arange(IMAGES, device=device) % len(config["data"]["class_names"])
    generator = seeded(device, "preview")
    x = torch.randn((IMAGES, channels, height, width), generator=generator, device=device)
    grid = make_grid("trailing", schedule.steps, min(STEPS, schedule.steps))
    denoiser = clipped(network_denoiser(network, config["diffusion"]["prediction"], labels))
    *_, last = sample(denoiser, bind("ddim", eta=0.0), schedule, grid, x, lambda: torch.zeros_like(x))
    return to_uint8(last.x).permute(0, 2, 3, 1).cpu().numpy()
