"""Draws a whole set of samples: batches with named randomness, a few trajectories, and what it cost."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ddpm.data.batches import to_uint8
from ddpm.diffusion.schedule import NoiseSchedule, make_schedule
from ddpm.diffusion.variance import VarianceName
from ddpm.files import write_json, write_npz
from ddpm.networks.store import CheckpointName, load_model
from ddpm.networks.unet import UNet
from ddpm.params import Section
from ddpm.runtime import Progress, Runtime, autocast, seeded, setup
from ddpm.sampling.denoiser import clipped, network_denoiser
from ddpm.sampling.grid import SpacingName
from ddpm.sampling.samplers import StepRule, sample

Count = Annotated[int, Field(ge=1)]


class SampleDDPM(Section):
    """The `sample_ddpm` section: ancestral sampling over all T levels."""

    samples: Count
    batch_size: Count
    variance: VarianceName
    checkpoint: CheckpointName


class SampleDDIM(Section):
    """The `sample_ddim` section: DDIM over some of the levels."""

    samples: Count
    batch_size: Count
    steps: Annotated[int, Field(ge=1)]
    eta: Annotated[float, Field(ge=0, le=1)]
    spacing: SpacingName
    checkpoint: CheckpointName


class Drawn(NamedTuple):
    """arrays: what goes into the .npz; cost: network evaluations per image, seconds, images per second."""

    arrays: dict[str, np.ndarray]
    cost: dict[str, float]


TRAJECTORIES = 8
TRAJECTORY_FRAMES = 24


def balanced_labels(samples: int, classes: int) -> np.ndarray:
    """int64 (N,): every class equally often, in turn (0, 1, 2, ..., 0, 1, ...)."""
    return np.arange(samples, dtype=np.int64) % classes


def draw(
    network: UNet,
    config: dict,
    schedule: NoiseSchedule,
    rule: StepRule,
    grid: np.ndarray,
    samples: int,
    batch_size: int,
    seed: int,
    name: str,
    device: torch.device,
    autocast: Callable,
) -> Drawn:
    """Draw `samples` images with a step rule over a grid of levels.

    Batch k draws all its noise from (seed, name, k), on whatever process. The arrays follow the layout of OpenAI's evaluator:
    arr_0 images uint8 (N, H, W, C), arr_1 labels int64 (N,); beside them trajectory_x and trajectory_x0, uint8
    (F, K, H, W, C), and trajectory_level (F,): x_t and the prediction of x0 at F levels of the first K samples.
    """
    height, width, channels = config["data"]["shape"]
    labels = balanced_labels(samples, len(config["data"]["class_names"]))
    images = np.empty((samples, height, width, channels), np.uint8)
    kept = _frames_to_keep(len(grid) - 1)
    trajectory: list[tuple[int, np.ndarray, np.ndarray]] = []
    start = time.perf_counter()
    with Progress(name, samples * (len(grid) - 1), "steps") as progress, autocast():
        for batch, first in enumerate(range(0, samples, batch_size)):
            part = slice(first, min(first + batch_size, samples))
            shape = (part.stop - part.start, channels, height, width)
            generator = seeded(device, seed, name, batch)

            def noise(shape=shape, generator=generator) -> Tensor:
                return torch.randn(shape, generator=generator, device=device).contiguous(memory_format=torch.channels_last)

            denoiser = clipped(
                network_denoiser(network, config["diffusion"]["prediction"], torch.from_numpy(labels[part]).to(device))
            )
            x = noise()
            if batch == 0:
                trajectory.append((int(grid[0]), _to_images(x[:TRAJECTORIES]), _to_images(torch.zeros_like(x[:TRAJECTORIES]))))
            for step, frame in enumerate(sample(denoiser, rule, schedule, grid, x, noise)):
                if batch == 0 and step in kept:
                    trajectory.append((frame.index, _to_images(frame.x[:TRAJECTORIES]), _to_images(frame.x0[:TRAJECTORIES])))
                progress.advance(shape[0], f"batch {batch + 1}, {part.start:,} images done")
            images[part] = _to_images(frame.x)
    seconds = time.perf_counter() - start
    arrays = {
        "arr_0": images,
        "arr_1": labels,
        "trajectory_level": np.asarray([level for level, _, _ in trajectory], np.int64),
        "trajectory_x": np.stack([x for _, x, _ in trajectory]),
        "trajectory_x0": np.stack([x0 for _, _, x0 in trajectory]),
    }
    cost = {"nfe": len(grid) - 1, "seconds": round(seconds, 3), "images_per_second": round(samples / seconds, 3)}
    return Drawn(arrays, cost)


def _frames_to_keep(steps: int) -> set[int]:
    """Steps whose frames are kept, the last always; denser towards the end, where a picture takes shape."""
    positions = 1 - np.linspace(1, 0, min(TRAJECTORY_FRAMES, steps)) ** 1.5
    return set(np.unique(np.round(positions * (steps - 1)).astype(int)).tolist())


def _to_images(x: Tensor) -> np.ndarray:
    """Model range (B, C, H, W) -> uint8 (B, H, W, C)."""
    return to_uint8(x).permute(0, 2, 3, 1).cpu().numpy()


def draw_from_model(
    name: str,
    settings: SampleDDPM | SampleDDIM,
    seed: int,
    runtime: Runtime,
    rule: StepRule,
    grid: Callable[[int], np.ndarray],
) -> None:
    """Draw from models/ddpm into samples/NAME.npz, and write its cost to reports/sample_NAME/metrics.json.

    `grid` gives the levels to visit for a model of T levels. Raises InputError, before any sampling, if that is not possible.
    """
    device = setup(runtime)
    network, config = load_model(Path("models/ddpm"), settings.checkpoint, device)
    schedule = make_schedule(config["diffusion"]["schedule"], config["diffusion"]["timesteps"])
    levels = grid(schedule.steps)
    drawn = draw(
        network, config, schedule, rule, levels, settings.samples, settings.batch_size, seed, name, device,
        lambda: autocast(runtime, device),
    )  # fmt: skip
    write_npz(f"samples/{name}.npz", drawn.arrays)
    write_json(f"reports/sample_{name}/metrics.json", drawn.cost)
    print(
        f"{name}: {settings.samples:,} samples, {drawn.cost['nfe']} evaluations each, {drawn.cost['images_per_second']} images/s"
    )
