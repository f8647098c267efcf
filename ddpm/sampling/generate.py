"""Draws a whole set of samples: batches with named randomness, a few trajectories, and what it cost.

A few samples drawn during training, always from the same noise."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.core import processes
from ddpm.core.device import Precision, Runtime, compiled, setup
from ddpm.core.files import InputError, write_json, write_npz
from ddpm.core.progress import Progress
from ddpm.data.images import to_images
from ddpm.sampling.denoiser import thresholded
from ddpm.sampling.model import DiffusionModel, load
from ddpm.sampling.noise import ImageNoise, image_noise
from ddpm.sampling.progress import SamplingProgress, with_progress
from ddpm.sampling.samplers import euler_step, sample
from ddpm.sampling.settings import SampleDDIM, SampleDDPM, SamplingPlan
from ddpm.sampling.time_grid import denoising_steps, make_grid
from ddpm.sampling.trajectory import _frames_to_keep


class Drawn(NamedTuple):
    """arrays: what goes into the .npz; cost: network evaluations per image, seconds, images per second."""

    arrays: dict[str, np.ndarray]
    cost: dict[str, float]


# Compiling takes as long as some thousands of the network's evaluations.
COMPILE_PAYS = 2_000
TRAJECTORIES = 8


def draw(
    model: DiffusionModel,
    plan: SamplingPlan,
    samples: int,
    batch_size: int,
    seed: int,
    name: str,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    held_out_captions: bool = False,
) -> Drawn:
    """Draw `samples` images by a plan, the classes in turn; for a text network, by their captions.

    held_out_captions: use the caption templates that training did not show.

    Image i draws all its noise from (seed, name, i), in whatever batch and on whatever process. The arrays follow the layout of
    OpenAI's evaluator: arr_0 images uint8 (N, H, W, C) and, if classes are asked for, arr_1 labels int64 (N,). Beside them
    stand captions (N,), if the network reads, and trajectory_x and trajectory_x0, uint8 (F, K, H, W, C), and trajectory_level
    (F,): x_t and the prediction of x0 at F levels of the first K samples.

    Raises InputError if an image is not finite, which uint8 would hide.
    """
    height, width, channels = model.shape
    device, steps = model.device, denoising_steps(plan.grid)
    labels, captions, told = _tell(model, plan, samples, held_out_captions)
    kept = _frames_to_keep(steps)
    start = time.perf_counter()
    with Progress(name, samples * steps, "steps") as progress, autocast():

        def draw_batch(first: int) -> tuple[np.ndarray, list[tuple[float, np.ndarray, np.ndarray]]]:
            part = slice(first, min(first + batch_size, samples))
            shape = (part.stop - part.start, channels, height, width)
            noise = ImageNoise(device, shape, first, len(plan.grid) if plan.stochastic else 1, seed, name)
            denoiser = plan.denoiser(None if told is None else told[part])
            x = noise()
            # Before the first step there is no prediction of x0: a plain gray stands for it.
            frames = [] if first else [(plan.grid[0], x[:TRAJECTORIES], torch.zeros_like(x[:TRAJECTORIES]))]
            for step, frame in enumerate(sample(denoiser, plan.rule, model.schedule, plan.grid, x, noise)):
                if first == 0 and step in kept:
                    frames.append((frame.position, frame.x[:TRAJECTORIES], frame.x0[:TRAJECTORIES]))
                progress.advance(shape[0] * processes.world_size(), f"batch from image {first:,}")
            if not frame.x.isfinite().all():
                raise InputError(
                    f"images {part.start} to {part.stop - 1} are not finite; use thresholding 'clip' or less guidance", key=name
                )
            return to_images(frame.x), [(position, to_images(x), to_images(x0)) for position, x, x0 in frames]

        # Whole batches, so that an image has the same neighbours, and the same last digits, on however many processes.
        batches = processes.map_over_ranks(range(0, samples, batch_size), draw_batch)
    seconds = time.perf_counter() - start
    trajectory = batches[0][1]
    arrays = {"arr_0": np.concatenate([images for images, _ in batches])}
    arrays |= {} if labels is None else {"arr_1": labels.cpu().numpy()}
    arrays |= {} if captions is None else {"captions": np.asarray(captions)}
    arrays["trajectory_level"] = np.asarray([level for level, _, _ in trajectory])
    arrays["trajectory_x"] = np.stack([x for _, x, _ in trajectory])
    arrays["trajectory_x0"] = np.stack([x0 for _, _, x0 in trajectory])
    cost = {"nfe": plan.nfe, "seconds": round(seconds, 3), "images_per_second": round(samples / seconds, 3)}
    return Drawn(arrays, cost)


def _tell(
    model: DiffusionModel, plan: SamplingPlan, samples: int, held_out_captions: bool = False
) -> tuple[Tensor | None, list[str] | None, Tensor | None]:
    """The classes asked for (N,), their captions if the network reads, and what it is told of them; each may be None."""
    labels = model.balanced_labels(samples) if plan.conditional else None
    if labels is None or not model.network.takes_text:
        return labels, None, labels
    captions = model.captions(labels, held_out_captions)
    return labels, captions, model.read(captions)


def draw_from_model(name: str, settings: SampleDDPM | SampleDDIM, seed: int, runtime: Runtime) -> None:
    """Draw from models/ddpm into samples/NAME.npz, and write its cost to reports/sample_NAME/metrics.json.

    Raises InputError, before any sampling, for settings that this model cannot be drawn from with.
    """
    device = setup(runtime)
    model, precision = load(settings.checkpoint, device), Precision(runtime, device)
    try:
        plan = settings.plan(model)
        # Whatever the number of processes: compiling changes the last digits, and the images shall not depend on it.
        calls = plan.nfe * -(-settings.samples // settings.batch_size)
        if runtime.compile or (runtime.compile is None and calls >= COMPILE_PAYS):
            model = _compiled(model, settings, runtime.compile, precision)
            plan = settings.plan(model)
    except InputError as error:
        raise error.within("params.yaml", f"sample_{name}.") from None
    drawn = draw(model, plan, settings.samples, settings.batch_size, seed, name, precision.autocast)
    if not processes.is_main_process():
        return
    write_npz(f"samples/{name}.npz", {**drawn.arrays, "sampler": np.array([plan.label])})
    write_json(f"reports/sample_{name}/metrics.json", drawn.cost)
    rate = drawn.cost["images_per_second"]
    print(f"{plan.label}: {settings.samples:,} samples, {plan.nfe:,} network evaluations each, {rate} images/s")


def _compiled(
    model: DiffusionModel, settings: SampleDDPM | SampleDDIM, wanted: bool | None, precision: Precision
) -> DiffusionModel:
    """The model with its network compiled for the batches that these settings draw, where that is wanted and works."""
    batch, (height, width, channels) = min(settings.samples, settings.batch_size), model.shape

    def probe(network: torch.nn.Module) -> None:
        # The first steps themselves: tensors of another type or order in memory would have it compiled once more.
        plan = settings.plan(model._replace(network=network))
        noise = ImageNoise(model.device, (batch, channels, height, width), 0, 1, "probe")
        *_, told = _tell(model, plan, settings.samples)
        denoiser = plan.denoiser(None if told is None else told[:batch])
        with precision.autocast():
            for _ in islice(sample(denoiser, plan.rule, model.schedule, plan.grid, noise(), noise), 3):
                pass

    return model._replace(network=compiled(model.network, wanted, model.device, probe))


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


BATCH = 100


def draw_images(
    model: DiffusionModel, plan: SamplingPlan, labels: Tensor | None, count: int, seed: int, batch: int = BATCH
) -> Iterator[SamplingProgress]:
    """Draw images, in batches; image i of a seed is the same in whatever batch."""
    work = denoising_steps(plan.grid)
    starts = range(0, count, batch)
    for k, first in enumerate(starts):
        size = min(batch, count - first)
        noise = image_noise(model, seed, size, len(plan.grid) if plan.stochastic else 1, first)
        denoiser = plan.denoiser(None if labels is None else labels[first : first + size])
        frames = sample(denoiser, plan.rule, model.schedule, plan.grid, noise(), noise)
        yield from with_progress(frames, k * work, len(starts) * work, first)
