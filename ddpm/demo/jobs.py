"""The jobs of the web page; nothing here depends on Gradio.

A job is a generator that yields ProgressUpdates, writes files into a folder, and returns its result. It is called with the values
of a button, in the order of a Section of inputs.py, and validates them.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import wraps
from inspect import signature
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ddpm.core.files import InputError, write_npz
from ddpm.core.memory import out_of_memory_names
from ddpm.core.params import Section
from ddpm.data.images import to_images, to_model_range, to_tensor
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
from ddpm.editing.inpaint import with_repaint_jumps
from ddpm.editing.inputs import NamedImage, open_image
from ddpm.editing.tasks import inpaint_images, interpolate_images, repeat_labels
from ddpm.plots.image_grid import rows_of, save, table, tinted
from ddpm.plots.video import denoising_frames, strip_film, write_film
from ddpm.sampling.generate import generate
from ddpm.sampling.labels import NO_CLASS, conditioning_for
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.plan import make_plan
from ddpm.sampling.progress import SamplingProgress, final_images
from ddpm.sampling.settings import SamplingPlan
from ddpm.sampling.time_grid import denoising_steps
from ddpm.sampling.trajectory import TrajectoryRecorder

MAX_SECONDS = 900  # of a job whose client does not listen; others stop when the client leaves
REFRESH_SECONDS = 0.2
JUMP = 10
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
def draw(model: DiffusionModel, folder: Path, inputs: DrawInputs) -> Job:
    """Generates images."""
    plan = make_plan(model, sampler=inputs.sampler, steps=inputs.steps, eta=inputs.eta, guidance=inputs.guidance)
    labels, captions = _conditioning(model, inputs.number, inputs.content, inputs.guidance)
    record = TrajectoryRecorder(denoising_steps(plan.grid), FILM_FRAMES, FILM_IMAGES)
    images, seconds = yield from _track(generate(model, plan, labels, inputs.number, inputs.seed), record)
    files = {"picture": folder / "sample.png", "arrays": folder / "sample.npz", "film": folder / "denoising.gif"}
    save(files["picture"], _table(images, captions))
    arrays = {"arr_0": images, "seed": np.array(inputs.seed), "sampler": np.array(plan.label)}
    arrays |= {"arr_1": labels.cpu().numpy()} if labels is not None and labels.ndim == 1 else {}
    arrays |= {"captions": np.array(captions)} if any(captions) else {}
    write_npz(files["arrays"], arrays)
    write_film(files["film"], denoising_frames(record.x, record.x0, record.levels, FILM_TILE), fps=12)
    return JobResult(files, _cost(plan, len(images), seconds))


@job(SourceInputs)
def show(model: DiffusionModel, inputs: SourceInputs) -> Generator[ProgressUpdate, None, np.ndarray]:
    """Returns the image uint8 (H, W, C) to paint a mask on."""
    x0 = yield from _image(model, inputs, _open(model, inputs))
    return to_images(x0)[0]


@job(InpaintInputs)
def inpaint(model: DiffusionModel, folder: Path, inputs: InpaintInputs) -> Job:
    """Fills the masked region of an image in several ways."""
    known, count = mask_of(model, inputs.mask, inputs.painted), inputs.number_of_fills
    jump = min(JUMP, inputs.steps - 1)
    change = (lambda grid: with_repaint_jumps(grid, jump, inputs.resamples)) if jump and inputs.resamples > 1 else None
    plan = make_plan(model, change=change, sampler="ddim", steps=inputs.steps, eta=1.0, guidance=inputs.guidance)
    labels = repeat_labels(_open(model, inputs, inputs.guidance).source.labels, count)
    # The image on the board was generated without guidance.
    x0 = yield from _image(model, inputs, _open(model, inputs))
    fills, seconds = yield from _track(inpaint_images(model, plan, x0.expand(count, -1, -1, -1), known, labels, inputs.seed))
    image, picture = to_images(x0)[0], folder / "inpainting.png"
    rows = [[image, tinted(image, known)], *(list(fills[k : k + COLUMNS]) for k in range(0, count, COLUMNS))]
    save(picture, table(rows, ["image", "fills", *[""] * (len(rows) - 2)], [], TILE))
    return JobResult({"picture": picture}, _cost(plan, count, seconds))


@job(InterpolateInputs)
def interpolate(model: DiffusionModel, folder: Path, inputs: InterpolateInputs) -> Job:
    """Interpolates between two images."""
    plan = make_plan(model, sampler=inputs.sampler, steps=inputs.steps)
    ends = [
        _named(model, SOURCES[inputs.ends](number, None), content)
        for number, content in ((inputs.first, inputs.first_content), (inputs.second, inputs.second_content))
    ]
    task = interpolate_images(model, plan, ends[0].source, ends[1].source, inputs.number)
    images, seconds = yield from _track(task)
    files = {"picture": folder / "strip.png", "film": folder / "strip.gif"}
    save(files["picture"], _rows(images, COLUMNS))
    write_film(files["film"], strip_film(images, 1, 4 * TILE), fps=10, hold=0)
    return JobResult(files, f"{len(images)} images by {plan.label}, {inputs.steps:,} steps, {seconds:.1f} s")


@job(CompareInputs)
def compare(model: DiffusionModel, folder: Path, inputs: CompareInputs) -> Job:
    """Generates the same seed by two samplers."""
    pairs = ((inputs.first_sampler, inputs.first_steps), (inputs.second_sampler, inputs.second_steps))
    plans = [make_plan(model, sampler=sampler, steps=steps, guidance=inputs.guidance) for sampler, steps in pairs]
    labels, _ = _conditioning(model, inputs.number, inputs.content, inputs.guidance)
    work = [denoising_steps(plan.grid) for plan in plans]
    files, notes, earlier = {}, [], []
    for k, plan in enumerate(plans):
        title = f"{plan.label}, {pairs[k][1]:,} steps"
        for update in (kept := WithReturnValue(_track(generate(model, plan, labels, inputs.number, inputs.seed)))):
            current = (title, update.shown[1][1])
            yield ProgressUpdate(sum(work[:k]) + update.done, sum(work), update.seconds, [*earlier, current])
        images, seconds = kept.value
        files["second" if k else "first"] = path = folder / f"sampler_{k + 1}.png"
        notes.append(_cost(plan, len(images), seconds))
        save(path, _rows(images, 5))
        earlier.append((title, images))
    return JobResult(files, "\n".join(notes))


class WithReturnValue:
    """Iterates over a generator and keeps its return value as `value`."""

    def __init__(self, generator: Generator[ProgressUpdate, None, Any]):
        self.generator = generator
        self.value: Any = None

    def __iter__(self) -> Iterator[ProgressUpdate]:
        self.value = yield from self.generator


def _conditioning(model: DiffusionModel, count: int, content: str, guidance: float) -> tuple[Tensor | None, list[str]]:
    """Returns labels and captions of a class, or of the lines of a text in turn."""
    if model.network.takes_text:
        return conditioning_for(model, count, (), [line for line in content.splitlines() if line.strip()], guidance)
    return conditioning_for(model, count, [content] if content.strip() else [], (), guidance)


def _named(model: DiffusionModel, name: str, content: str, guidance: float = 1.0) -> NamedImage:
    key = "text" if model.network.takes_text and content != NO_CLASS else "label"
    return open_image(model, name, **({key: content} if content.strip() else {}), guidance=guidance)


def _open(model: DiffusionModel, inputs: SourceInputs, guidance: float = 1.0) -> NamedImage:
    name = SOURCES[inputs.source](inputs.number, inputs.upload)
    try:
        return _named(model, name, inputs.content, guidance)
    except InputError as error:
        # The message must not show the path of an upload on the server.
        raise InputError(error.message.replace(name, Path(name).name), key=error.key.replace(name, Path(name).name)) from None


def _image(model: DiffusionModel, inputs: SourceInputs, opened: NamedImage) -> Generator[ProgressUpdate, None, Tensor]:
    if opened.source.image is not None:
        return opened.source.image
    images, _ = yield from _track(generate(model, make_plan(model), opened.source.labels, 1, inputs.number))
    return to_model_range(to_tensor(images, model.device))


def _track(
    task: Iterator[SamplingProgress], callback: Callable[[SamplingProgress], object] = lambda step: None
) -> Generator[ProgressUpdate, None, tuple[np.ndarray, float]]:
    """Yields the progress of a task every REFRESH_SECONDS; returns its images, uint8 (N, H, W, C), and its seconds."""
    start, shown, idle, last = time.monotonic(), 0.0, 0.0, []
    for step in task:
        callback(step)
        last += [step] if step.last else []
        passed = time.monotonic() - start
        if passed > MAX_SECONDS:
            raise InputError(f"the job took more than {passed:.0f} seconds; use fewer steps or images", key="steps")
        if step.done in (1, step.total) or passed - shown >= REFRESH_SECONDS:
            pictures = [(f"x_t at t = {step.position:.4g}", to_images(step.x)), ("predicted image", to_images(step.x0))]
            yield ProgressUpdate(step.done, step.total, passed - idle, pictures)
            shown = time.monotonic() - start
            # Sending pictures does not count as time of the sampler.
            idle += shown - passed
    return to_images(final_images(iter(last))), passed - idle


def _table(images: np.ndarray, captions: Sequence[str]) -> Image.Image:
    """Returns a grid of images: with a column for each caption if captions are short, else with captioned rows."""
    groups = rows_of(captions, len(captions))
    names = [caption for caption, _ in groups]
    if not 1 < len(names) <= MAX_CAPTIONS:
        return _rows(images, COLUMNS)
    if max(map(len, names)) > MAX_COLUMN_CAPTION:
        groups = rows_of(captions, COLUMNS)
        return table([list(images[group]) for _, group in groups], [caption for caption, _ in groups], [], TILE)
    paper = np.full_like(images[0], 255)
    rows = list(zip_longest(*(images[group] for _, group in groups), fillvalue=paper))
    return table(rows, [""] * len(rows), names, TILE)


def _rows(images: np.ndarray, columns: int) -> Image.Image:
    rows = [list(images[k : k + columns]) for k in range(0, len(images), columns)]
    return table(rows, [""] * len(rows), [], TILE)


def _cost(plan: SamplingPlan, images: int, seconds: float) -> str:
    count = "1 image" if images == 1 else f"{images} images"
    return f"{count} by {plan.label}, {plan.nfe:,} network evaluations each, {seconds:.1f} s"
