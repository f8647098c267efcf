"""Draws a whole set of samples: batches with named randomness, a few trajectories, and what it cost."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.data.batches import to_images
from ddpm.files import InputError, write_json, write_npz
from ddpm.runtime import Progress, Runtime, autocast, setup
from ddpm.sampling.grid import evaluations
from ddpm.sampling.model import DiffusionModel, load
from ddpm.sampling.noise import ImageNoise
from ddpm.sampling.samplers import sample
from ddpm.sampling.settings import Plan, SampleDDIM, SampleDDPM


class Drawn(NamedTuple):
    """arrays: what goes into the .npz; cost: network evaluations per image, seconds, images per second."""

    arrays: dict[str, np.ndarray]
    cost: dict[str, float]


TRAJECTORIES = 8
TRAJECTORY_FRAMES = 24


def draw(
    model: DiffusionModel,
    plan: Plan,
    samples: int,
    batch_size: int,
    seed: int,
    name: str,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> Drawn:
    """Draw `samples` images by a plan.

    Image i draws all its noise from (seed, name, i), in whatever batch and on whatever process. The arrays follow the layout of
    OpenAI's evaluator: arr_0 images uint8 (N, H, W, C) and, if classes are asked for, arr_1 labels int64 (N,). Beside them
    stand trajectory_x and trajectory_x0, uint8 (F, K, H, W, C), and trajectory_level (F,): x_t and the prediction of x0 at F
    levels of the first K samples.

    Raises InputError if an image is not finite, which uint8 would hide.
    """
    height, width, channels = model.shape
    device, steps = model.device, evaluations(plan.grid)
    labels = model.balanced_labels(samples) if plan.conditional else None
    images = np.empty((samples, height, width, channels), np.uint8)
    kept = _frames_to_keep(steps)
    trajectory: list[tuple[float, Tensor, Tensor]] = []
    start = time.perf_counter()
    with Progress(name, samples * steps, "steps") as progress, autocast():
        for batch, first in enumerate(range(0, samples, batch_size)):
            part = slice(first, min(first + batch_size, samples))
            shape = (part.stop - part.start, channels, height, width)
            noise = ImageNoise(device, shape, first, len(plan.grid) if plan.stochastic else 1, seed, name)
            denoiser = plan.denoiser(None if labels is None else labels[part])
            x = noise()
            if batch == 0:
                # Before the first step there is no prediction of x0: a plain gray stands for it.
                trajectory.append((plan.grid[0], x[:TRAJECTORIES], torch.zeros_like(x[:TRAJECTORIES])))
            for step, frame in enumerate(sample(denoiser, plan.rule, model.schedule, plan.grid, x, noise)):
                if batch == 0 and step in kept:
                    trajectory.append((frame.position, frame.x[:TRAJECTORIES], frame.x0[:TRAJECTORIES]))
                progress.advance(shape[0], f"batch {batch + 1}, {part.start:,} images done")
            if not frame.x.isfinite().all():
                raise InputError(
                    f"{name}: images {part.start} to {part.stop - 1} are not finite; use thresholding 'clip' or less guidance"
                )
            images[part] = to_images(frame.x)
    seconds = time.perf_counter() - start
    arrays = {"arr_0": images} | ({} if labels is None else {"arr_1": labels.cpu().numpy()})
    arrays["trajectory_level"] = np.asarray([level for level, _, _ in trajectory])
    arrays["trajectory_x"] = np.stack([to_images(x) for _, x, _ in trajectory])
    arrays["trajectory_x0"] = np.stack([to_images(x0) for _, _, x0 in trajectory])
    cost = {"nfe": plan.nfe, "seconds": round(seconds, 3), "images_per_second": round(samples / seconds, 3)}
    return Drawn(arrays, cost)


def _frames_to_keep(steps: int) -> set[int]:
    """Steps whose frames are kept, the last always; denser towards the end, where a picture takes shape."""
    positions = 1 - np.linspace(1, 0, min(TRAJECTORY_FRAMES, steps)) ** 1.5
    return set(np.unique(np.round(positions * (steps - 1)).astype(int)).tolist())


def draw_from_model(name: str, settings: SampleDDPM | SampleDDIM, seed: int, runtime: Runtime) -> None:
    """Draw from models/ddpm into samples/NAME.npz, and write its cost to reports/sample_NAME/metrics.json.

    Raises InputError, before any sampling, for settings that this model cannot be drawn from with.
    """
    device = setup(runtime)
    model = load(settings.checkpoint, device)
    try:
        plan = settings.plan(model)
    except InputError as error:
        raise InputError(f"params.yaml: sample_{name}.{error}") from None
    drawn = draw(model, plan, settings.samples, settings.batch_size, seed, name, lambda: autocast(runtime, device))
    write_npz(f"samples/{name}.npz", {**drawn.arrays, "sampler": np.array([plan.label])})
    write_json(f"reports/sample_{name}/metrics.json", drawn.cost)
    rate = drawn.cost["images_per_second"]
    print(f"{plan.label}: {settings.samples:,} samples, {plan.nfe:,} network evaluations each, {rate} images/s")
