"""The jobs of the web page: methods of a model (ddpm/api), watched step by step. Nothing here depends on Gradio.

A job is a generator that yields ProgressUpdates, writes files into a folder, and returns its result. It is called with the values
of a button, in the order of a Section of inputs.py, and validates them.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import wraps
from inspect import signature
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ddpm.api.generation import Generation
from ddpm.api.images import Images
from ddpm.api.model import Model
from ddpm.core.files import InputError, counted
from ddpm.core.memory import out_of_memory_names
from ddpm.core.params import Section
from ddpm.data.images import to_images
from ddpm.demo.inputs import (
    SOURCES,
    CompareInputs,
    DrawInputs,
    InpaintInputs,
    InterpolateInputs,
    SourceInputs,
    mask_of,
    validate,
)
from ddpm.plots.image_grid import rows_of, save, table
from ddpm.plots.video import denoising_frames, strip_film, write_film
from ddpm.sampling.labels import NO_CLASS
from ddpm.sampling.time_grid import denoising_steps
from ddpm.sampling.trajectory import TrajectoryRecorder

MAX_SECONDS = 900  # of a job whose client does not listen; others stop when the client leaves
REFRESH_SECONDS = 0.2
TILE, FILM_TILE, FILM_FRAMES, FILM_IMAGES = 64, 64, 40, 8
COLUMNS = 8
MAX_COLUMN_CAPTION, MAX_CAPTIONS = 12, 16  # letters of a caption above a column, and number of different captions


class ProgressUpdate(NamedTuple):
    """The progress of a job.

    done, total: denoising steps done and in all.
    seconds: time since the start.
    shown: titles and images uint8 (N, H, W, C).
    """

    done: int
    total: int
    seconds: float
    shown: Sequence[tuple[str, np.ndarray]]


class JobResult(NamedTuple):
    """The result of a job.

    files: the written files by name.
    note: a line about the cost, or one for each picture.
    """

    files: dict[str, Path]
    note: str


Job = Generator[ProgressUpdate, None, JobResult]


def job(kind: type[Section]) -> Callable[[Callable[..., Generator]], Callable[..., Generator]]:
    """Decorates a job, which receives the values as a Section `kind` behind its other arguments.

    It raises InputError for invalid values, and for an allocation that fails.
    """

    def decorate(work: Callable[..., Generator]) -> Callable[..., Generator]:
        others = len(signature(work).parameters) - 1

        @wraps(work)
        def run(*arguments: Any) -> Generator:
            with out_of_memory_names("number of images", where=""):
                return (yield from work(*arguments[:others], validate(kind, arguments[others:])))

        run.kind = kind
        return run

    return decorate


@job(DrawInputs)
def draw(model: Model, folder: Path, inputs: DrawInputs) -> Job:
    """Generates images."""
    style = {"sampler": inputs.sampler, "steps": inputs.steps, "eta": inputs.eta, "guidance": inputs.guidance}
    generation = model.sampling(inputs.number, seed=inputs.seed, **_contents(model, inputs.content), **style)
    record = TrajectoryRecorder(denoising_steps(generation.plan.grid), FILM_FRAMES, FILM_IMAGES)
    images, seconds = yield from _track(generation, record)
    files = {"picture": folder / "sample.png", "arrays": folder / "sample.npz", "film": folder / "denoising.gif"}
    save(files["picture"], _grid(images))
    images.save(files["arrays"])
    write_film(files["film"], denoising_frames(record.x, record.x0, record.levels, FILM_TILE), fps=12)
    return JobResult(files, _cost(images, seconds))


@job(SourceInputs)
def show(model: Model, inputs: SourceInputs) -> Generator[ProgressUpdate, None, np.ndarray]:
    """Returns the image uint8 (H, W, C) to paint a mask on."""
    images, _ = yield from _track(_start(model, model.editing, inputs, strength=0.0))
    return images[0]


@job(InpaintInputs)
def inpaint(model: Model, folder: Path, inputs: InpaintInputs) -> Job:
    """Fills the masked region of an image in several ways."""
    resamples = inputs.resamples if inputs.steps > 1 else 1  # a single step cannot be sampled again
    style = {"sampler": "ddim", "steps": inputs.steps, "eta": 1.0, "guidance": inputs.guidance, "resamples": resamples}
    what = {"mask": mask_of(model.shape, inputs.mask, inputs.painted), "number": inputs.number_of_fills, "seed": inputs.seed}
    fills, seconds = yield from _track(_start(model, model.inpainting, inputs, **what, **style))
    files = {"picture": folder / "inpainting.png"}
    fills.save(files["picture"], COLUMNS, TILE)
    return JobResult(files, _cost(fills, seconds))


@job(InterpolateInputs)
def interpolate(model: Model, folder: Path, inputs: InterpolateInputs) -> Job:
    """Interpolates between two images."""
    ends = [
        model.open(SOURCES[inputs.ends](number, None), **_content(model, content))
        for number, content in ((inputs.first, inputs.first_content), (inputs.second, inputs.second_content))
    ]
    generation = model.interpolation(*ends, inputs.number, sampler=inputs.sampler, steps=inputs.steps)
    images, seconds = yield from _track(generation)
    files = {"picture": folder / "strip.png", "film": folder / "strip.gif"}
    images.save(files["picture"], COLUMNS, TILE)
    write_film(files["film"], strip_film(images.array, 1, 4 * TILE), fps=10, hold=0)
    return JobResult(
        files, f"{counted(len(images), 'image')} by {images.sampler}, {counted(inputs.steps, 'step')}, {seconds:.1f} s"
    )


@job(CompareInputs)
def compare(model: Model, folder: Path, inputs: CompareInputs) -> Job:
    """Generates the same seed by two samplers."""
    pairs = ((inputs.first_sampler, inputs.first_steps), (inputs.second_sampler, inputs.second_steps))
    content = {"seed": inputs.seed, "guidance": inputs.guidance, **_contents(model, inputs.content)}
    generations = [model.sampling(inputs.number, sampler=sampler, steps=steps, **content) for sampler, steps in pairs]
    work = [denoising_steps(generation.plan.grid) for generation in generations]
    files, notes, earlier = {}, [], []
    for k, generation in enumerate(generations):
        title = f"{generation.plan.label}, {counted(pairs[k][1], 'step')}"
        for update in (kept := WithReturnValue(_track(generation))):
            current = (title, update.shown[1][1])
            yield ProgressUpdate(sum(work[:k]) + update.done, sum(work), update.seconds, [*earlier, current])
        images, seconds = kept.value
        files["second" if k else "first"] = path = folder / f"sampler_{k + 1}.png"
        notes.append(_cost(images, seconds))
        save(path, _rows(images, 5))
        earlier.append((title, images.array))
    return JobResult(files, "\n".join(notes))


class WithReturnValue:
    """Iterates over a generator and keeps its return value as `value`."""

    def __init__(self, generator: Generator[ProgressUpdate, None, Any]):
        self.generator = generator
        self.value: Any = None

    def __iter__(self) -> Iterator[ProgressUpdate]:
        self.value = yield from self.generator


def _contents(model: Model, content: str) -> dict[str, list[str]]:
    """Returns the arguments for a class, or for the lines of a text in turn, of new images."""
    if model.diffusion.network.takes_text:
        return {"texts": [line for line in content.splitlines() if line.strip()]}
    return {"labels": [content] if content.strip() else []}


def _content(model: Model, content: str) -> dict[str, str]:
    """Returns the argument for the class or text of an image."""
    key = "text" if model.diffusion.network.takes_text and content != NO_CLASS else "label"
    return {key: content} if content.strip() else {}


def _start(model: Model, method: Callable[..., Generation], inputs: SourceInputs, **options: Any) -> Generation:
    """Returns what a method makes of the chosen image."""
    name = SOURCES[inputs.source](inputs.number, inputs.upload)
    try:
        return method(name, **_content(model, inputs.content), **options)
    except InputError as error:
        # The message must not show the path of an upload on the server.
        raise InputError(error.message.replace(name, Path(name).name), key=error.key.replace(name, Path(name).name)) from None


def _track(
    generation: Generation, callback: Callable[..., object] = lambda step: None
) -> Generator[ProgressUpdate, None, tuple[Images, float]]:
    """Yields the progress of a generation every REFRESH_SECONDS; returns its images and its seconds.

    callback: receives every step.
    """
    start, shown, idle = time.monotonic(), 0.0, 0.0
    for step in generation:
        callback(step)
        passed = time.monotonic() - start
        if passed > MAX_SECONDS:
            raise InputError(f"the job took more than {passed:.0f} seconds; use fewer steps or images", key="steps")
        if step.done in (1, step.total) or passed - shown >= REFRESH_SECONDS:
            pictures = [(f"x_t at t = {step.position:.4g}", to_images(step.x)), ("predicted image", to_images(step.x0))]
            yield ProgressUpdate(step.done, step.total, passed - idle, pictures)
            shown = time.monotonic() - start
            # Sending pictures does not count as time of the sampler.
            idle += shown - passed
    return generation.images, passed - idle


def _grid(images: Images) -> Image.Image:
    """Returns a grid of images: with a column for each caption if captions are short, else with captioned rows."""
    groups = rows_of(images.captions, len(images))
    names = [caption for caption, _ in groups]
    if not 1 < len(names) <= MAX_CAPTIONS:
        return _rows(images, COLUMNS)
    if max(map(len, names)) > MAX_COLUMN_CAPTION:
        return images.grid(COLUMNS, TILE)
    paper = np.full_like(images[0], 255)
    rows = list(zip_longest(*(images.array[group] for _, group in groups), fillvalue=paper))
    return table(rows, [""] * len(rows), names, TILE)


def _rows(images: Images, columns: int) -> Image.Image:
    return replace(images, captions=()).grid(columns, TILE)


def _cost(images: Images, seconds: float) -> str:
    made = f"{counted(len(images), 'image')} by {images.sampler}"
    return f"{made}, {counted(images.nfe, 'network evaluation')} each, {seconds:.1f} s"
