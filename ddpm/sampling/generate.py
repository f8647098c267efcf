"""Generates images by a sampling plan: one loop for stages, previews, the command line, the web page and export."""

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
from ddpm.core.files import InputError, counted, write_json, write_npz
from ddpm.core.paths import samples_file
from ddpm.core.progress import Progress
from ddpm.core.weights import weights_id
from ddpm.data.images import to_images
from ddpm.sampling.labels import proportional_conditioning
from ddpm.sampling.model import DiffusionModel, load_to_score
from ddpm.sampling.noise import Seed, image_noise
from ddpm.sampling.plan import SamplingPlan, make_plan
from ddpm.sampling.progress import SamplingProgress, with_progress
from ddpm.sampling.samplers import sample
from ddpm.sampling.settings import SampleDDIM, SampleDDPM
from ddpm.sampling.time_grid import denoising_steps
from ddpm.sampling.trajectory import TrajectoryRecorder

# Compiling takes as long as some thousands of network evaluations.
MIN_CALLS_TO_COMPILE = 2_000
TRAJECTORY_IMAGES, TRAJECTORY_FRAMES = 8, 24
PREVIEW_IMAGES, PREVIEW_STEPS = 20, 20


def generate(
    model: DiffusionModel,
    plan: SamplingPlan,
    labels: Tensor | None,
    count: int,
    seed: Seed = 0,
    batch_size: int = 100,
    first: int = 0,
) -> Iterator[SamplingProgress]:
    """Generates the images first .. first + count - 1 of a seed in batches; yields a SamplingProgress after each step.

    labels: class ids (N,) or word ids (N, L) of the images, or None.
    seed: a seed of the command line and the web page, or all parts of another one, such as (seed, "ddpm"). Image i draws its
        noise from the seed and i, in any batch.
    """
    steps, starts = denoising_steps(plan.grid), range(0, count, batch_size)
    for k, start in enumerate(starts):
        stop = min(start + batch_size, count)
        noise = image_noise(model, seed, stop - start, len(plan.grid) if plan.stochastic else 1, first + start)
        denoiser = plan.denoiser(None if labels is None else labels[start:stop])
        frames = sample(denoiser, plan.rule, model.schedule, plan.grid, noise(), noise)
        yield from with_progress(frames, k * steps, len(starts) * steps, first + start)


class SampleSet(NamedTuple):
    """Generated images and what they cost.

    arrays: the arrays of samples/NAME.npz.
    cost: network evaluations per image (nfe), seconds, images per second.
    """

    arrays: dict[str, np.ndarray]
    cost: dict[str, float]


def generate_set(
    model: DiffusionModel,
    plan: SamplingPlan,
    samples: int,
    batch_size: int,
    seed: int,
    name: str,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    held_out_captions: bool = False,
) -> SampleSet:
    """Generates `samples` images on all processes, with the classes in the shares of the training split (`proportional_labels`).

    Image i draws its noise from (seed, name, i).

    held_out_captions: a text network receives the caption templates that training did not use.

    The arrays follow the layout of OpenAI's evaluator: arr_0 images uint8 (N, H, W, C) and, with class labels, arr_1 int64 (N,).
    Further arrays are captions (N,) of a text network, and trajectory_x, trajectory_x0, uint8 (F, K, H, W, C), and
    trajectory_level (F,): x_t and the prediction of x0 at F levels of the first K samples.

    Raises InputError if an image is not finite, which uint8 would hide.
    """
    labels, captions, conditioning = None, None, None
    if plan.conditional:
        labels, captions, conditioning = proportional_conditioning(model, samples, held_out_captions)
    steps, start = denoising_steps(plan.grid), time.perf_counter()
    with Progress(name, samples * steps, "steps") as progress, autocast():

        def generate_batch(first: int) -> tuple[np.ndarray, TrajectoryRecorder]:
            stop = min(first + batch_size, samples)
            part = None if conditioning is None else conditioning[first:stop]
            recorder = TrajectoryRecorder(steps, TRAJECTORY_FRAMES, TRAJECTORY_IMAGES)
            for update in generate(model, plan, part, stop - first, (seed, name), batch_size, first):
                recorder(update)
                progress.advance((stop - first) * processes.world_size(), f"batch from image {first:,}")
            if not update.x.isfinite().all():
                raise InputError(
                    f"images {first} to {stop - 1} are not finite; use thresholding 'clip' or less guidance", key=name
                )
            return to_images(update.x), recorder

        # Whole batches, so that an image has the same neighbours, and the same last digits, on any number of processes.
        batches = processes.map_over_ranks(range(0, samples, batch_size), generate_batch)
    seconds = time.perf_counter() - start
    arrays = {"arr_0": np.concatenate([images for images, _ in batches])}
    arrays |= {} if labels is None else {"arr_1": labels.cpu().numpy()}
    arrays |= {} if captions is None else {"captions": np.asarray(captions)}
    # Before the first step there is no prediction of x0: the trajectory starts with plain gray.
    noise = to_images(image_noise(model, (seed, name), min(TRAJECTORY_IMAGES, samples), 1)())
    recorded = [recorder for _, recorder in batches if recorder.levels]
    arrays["trajectory_level"] = np.asarray([plan.grid[0], *recorded[0].levels])
    arrays["trajectory_x"] = np.concatenate([noise[None], np.concatenate([r.x for r in recorded], axis=1)])
    arrays["trajectory_x0"] = np.concatenate([np.full_like(noise, 128)[None], np.concatenate([r.x0 for r in recorded], axis=1)])
    cost = {"nfe": plan.nfe, "seconds": round(seconds, 3), "images_per_second": round(samples / seconds, 3)}
    return SampleSet(arrays, cost)


def write_samples(name: str, settings: SampleDDPM | SampleDDIM, seed: int, runtime: Runtime) -> None:
    """Generates samples/NAME.npz from models/ddpm, and writes its cost, the model's SHA-256 and the settings of the sampler to
    reports/sample_NAME/metrics.json.

    Raises InputError, before any sampling, for settings that are not possible with this model.
    """
    device = setup(runtime)
    model, precision = load_to_score(settings.checkpoint, device), Precision(runtime, device)
    weights = weights_id(settings.checkpoint, model.network)  # before it is compiled
    written = settings.as_written()
    options = {key: value for key, value in written.items() if key not in ("samples", "batch_size", "checkpoint")}
    try:
        plan = settings.plan(model)
        # Independent of the number of processes: compiling changes the last digits of the images.
        calls = plan.nfe * -(-settings.samples // settings.batch_size)
        if runtime.compile or (runtime.compile is None and calls >= MIN_CALLS_TO_COMPILE):
            model = _compile(model, settings, runtime.compile, precision)
            plan = settings.plan(model)
    except InputError as error:
        raise error.within("params.yaml", f"sample_{name}.") from None
    result = generate_set(model, plan, settings.samples, settings.batch_size, seed, name, precision.autocast)
    if not processes.is_main_process():
        return
    write_npz(samples_file(name), {**result.arrays, "sampler": np.array([plan.label])})
    write_json(f"reports/sample_{name}/metrics.json", {**result.cost, "model": weights, "settings": options})
    rate = result.cost["images_per_second"]
    print(f"{plan.label}: {counted(settings.samples, 'sample')}, {counted(plan.nfe, 'network evaluation')} each, {rate} images/s")


def _compile(
    model: DiffusionModel, settings: SampleDDPM | SampleDDIM, requested: bool | None, precision: Precision
) -> DiffusionModel:
    """Returns the model with its network compiled for the batches of these settings, if compiling works."""
    batch = min(settings.samples, settings.batch_size)

    def probe(network: torch.nn.Module) -> None:
        # The first steps of the run itself: tensors of another type or memory order would be compiled once more.
        candidate = model._replace(network=network)
        plan = settings.plan(candidate)
        labels = proportional_conditioning(model, settings.samples)[2] if plan.conditional else None
        labels = None if labels is None else labels[:batch]
        with precision.autocast():
            for _ in islice(generate(candidate, plan, labels, batch, ("probe",), batch), 3):
                pass

    return model._replace(network=compiled(model.network, requested, model.device, probe))


def generate_preview(model: DiffusionModel) -> np.ndarray:
    """Returns 20 images, uint8 (20, H, W, C), of the classes in turn, always from the same noise, by DDIM with eta = 0."""
    plan = make_plan(model, sampler="euler", steps=min(PREVIEW_STEPS, model.schedule.steps))
    *_, last = generate(model, plan, model.balanced_labels(PREVIEW_IMAGES), PREVIEW_IMAGES, ("preview",))
    return to_images(last.x)
