"""The work behind the buttons of the web page; nothing here knows Gradio.

A job is a generator of Moments that returns what it made, with files in a folder that it is given. Its values are those of a
Section of `demo_values`, as anyone may send them.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ddpm.core.files import InputError, write_npz
from ddpm.data.images import to_images, to_model_range, to_tensor
from ddpm.demo.inputs import (
    EVERY,
    NAMES,
    OWN,
    Comparison,
    DrawInputs,
    InpaintInputs,
    InterpolateInputs,
    SourceInputs,
    asked_for,
    known_by,
)
from ddpm.editing.inpaint import with_repaint_jumps
from ddpm.editing.inputs import NamedImage, open_image
from ddpm.editing.tasks import inpaint_images, interpolate_images, repeat_labels
from ddpm.plots.image_grid import rows_of, save, table, tinted
from ddpm.plots.video import denoising_frames, strip_film, write_film
from ddpm.sampling.generate import generate
from ddpm.sampling.model import NO_CLASS, DiffusionModel, conditioning_for
from ddpm.sampling.plan import make_plan
from ddpm.sampling.progress import SamplingProgress, final_images
from ddpm.sampling.settings import SamplingPlan
from ddpm.sampling.time_grid import denoising_steps
from ddpm.sampling.trajectory import TrajectoryRecorder

# A job that nobody waits for any more ends at the next Moment; one that was asked for without listening, here.
MAX_SECONDS = 900
REFRESH_SECONDS = 0.2
JUMP = 10
TILE, FILM_TILE, FILM_FRAMES, FILMED = 64, 64, 40, 8
ACROSS = 8  # images in a row
SHORT, MAX_NAMES = 12, 16  # letters of a caption that stands above a column, and captions that stand beside each other


class ProgressUpdate(NamedTuple):
    """How far a job is, in network evaluations, after how many seconds; and images uint8 (N, H, W, C) with what they are."""

    done: int
    total: int
    seconds: float
    shown: Sequence[tuple[str, np.ndarray]]


class Drawn(NamedTuple):
    """A grid, its arrays, the film of how some of it came about, and what it cost."""

    picture: Path
    arrays: Path
    film: Path
    note: str


class Filled(NamedTuple):
    picture: Path
    note: str


class Between(NamedTuple):
    strip: Path
    film: Path
    note: str


class Compared(NamedTuple):
    first: Path
    second: Path
    notes: tuple[str, str]


def draw(model: DiffusionModel, folder: Path, *values: Any) -> Generator[ProgressUpdate, None, Drawn]:
    """Images by the values of a Drawing, in its order."""
    asked = asked_for(DrawInputs, values)
    plan = make_plan(model, sampler=asked.sampler, steps=asked.steps, eta=asked.eta, guidance=asked.guidance)
    labels, captions = _told(model, asked.number, asked.content, asked.guidance)
    record = TrajectoryRecorder(denoising_steps(plan.grid), FILM_FRAMES, FILMED)
    images, seconds = yield from _followed(generate(model, plan, labels, asked.number, asked.seed), record)
    note = _cost(plan, len(images), seconds)
    result = Drawn(folder / "sample.png", folder / "sample.npz", folder / "denoising.gif", note)
    save(result.picture, _table(images, captions))
    arrays = {"arr_0": images, "seed": np.array(asked.seed), "sampler": np.array(plan.label)}
    arrays |= {"arr_1": labels.cpu().numpy()} if labels is not None and labels.ndim == 1 else {}
    arrays |= {"captions": np.array(captions)} if any(captions) else {}
    write_npz(result.arrays, arrays)
    write_film(result.film, denoising_frames(record.x, record.x0, record.levels, FILM_TILE), fps=12)
    return result


def show(model: DiffusionModel, *values: Any) -> Generator[ProgressUpdate, None, np.ndarray]:
    """The image uint8 (H, W, C) that is to be painted on, by the values of a Shown."""
    asked = asked_for(SourceInputs, values)
    x0 = yield from _image(model, asked, _opened(model, asked))
    return to_images(x0)[0]


def inpaint(model: DiffusionModel, folder: Path, *values: Any) -> Generator[ProgressUpdate, None, Filled]:
    """Several ways to fill what a mask leaves of an image, by the values of a Filling."""
    asked = asked_for(InpaintInputs, values)
    known, count = known_by(model, asked.mask, asked.painted), asked.number_of_fills
    jump = min(JUMP, asked.steps - 1)
    change = (lambda grid: with_repaint_jumps(grid, jump, asked.resamples)) if jump and asked.resamples > 1 else None
    plan = make_plan(model, change=change, sampler="ddim", steps=asked.steps, eta=1.0, guidance=asked.guidance)
    labels = repeat_labels(_opened(model, asked, asked.guidance).source.labels, count)
    # The image that is painted on was drawn without any guidance.
    x0 = yield from _image(model, asked, _opened(model, asked))
    fills, seconds = yield from _followed(inpaint_images(model, plan, x0.expand(count, -1, -1, -1), known, labels, asked.seed))
    result = Filled(folder / "inpainting.png", _cost(plan, count, seconds))
    image = to_images(x0)[0]
    rows = [[image, tinted(image, known)], *(list(fills[k : k + ACROSS]) for k in range(0, count, ACROSS))]
    save(result.picture, table(rows, ["given", "filled", *[""] * (len(rows) - 2)], [], TILE))
    return result


def interpolate(model: DiffusionModel, folder: Path, *values: Any) -> Generator[ProgressUpdate, None, Between]:
    """The images from one to another, by the values of a Way."""
    asked = asked_for(InterpolateInputs, values)
    plan = make_plan(model, sampler=asked.sampler, steps=asked.steps)
    ends = [
        _named(model, NAMES[asked.ends](number, None), content)
        for number, content in ((asked.first, asked.first_content), (asked.second, asked.second_content))
    ]
    views = interpolate_images(model, plan, ends[0].source, ends[1].source, asked.number)
    images, seconds = yield from _followed(views)
    note = f"{len(images)} images by {plan.label}, {asked.steps:,} steps, {seconds:.1f} s"
    result = Between(folder / "strip.png", folder / "strip.gif", note)
    save(result.strip, _rows(images, ACROSS))
    write_film(result.film, strip_film(images, 1, 4 * TILE), fps=10, hold=0)
    return result


def compare(model: DiffusionModel, folder: Path, *values: Any) -> Generator[ProgressUpdate, None, Compared]:
    """The same seed drawn by two samplers, by the values of a Comparison."""
    asked = asked_for(Comparison, values)
    ways = ((asked.first_sampler, asked.first_steps), (asked.second_sampler, asked.second_steps))
    plans = [make_plan(model, sampler=sampler, steps=steps, guidance=asked.guidance) for sampler, steps in ways]
    labels, _ = _told(model, asked.number, asked.content, asked.guidance)
    work = [denoising_steps(plan.grid) for plan in plans]
    made: list[tuple[Path, str]] = []
    before: list[tuple[str, np.ndarray]] = []
    for k, plan in enumerate(plans):
        title = f"{plan.label}, {ways[k][1]:,} steps"
        for moment in (views := WithReturnValue(_followed(generate(model, plan, labels, asked.number, asked.seed)))):
            now = (title, moment.shown[1][1])
            yield ProgressUpdate(sum(work[:k]) + moment.done, sum(work), moment.seconds, [*before, now])
        images, seconds = views.value
        made.append((folder / f"sampler_{k + 1}.png", _cost(plan, len(images), seconds)))
        save(made[-1][0], _rows(images, 5))
        before.append((title, images))
    return Compared(made[0][0], made[1][0], (made[0][1], made[1][1]))


class WithReturnValue:
    """A generator to loop over, whose `value` is then what it returned."""

    def __init__(self, generator: Generator[ProgressUpdate, None, Any]):
        self.generator = generator
        self.value: Any = None

    def __iter__(self) -> Iterator[ProgressUpdate]:
        self.value = yield from self.generator


def _told(model: DiffusionModel, count: int, content: str, guidance: float) -> tuple[Tensor | None, list[str]]:
    """What the network is told of images to be drawn: a class, or texts in turn, one per line."""
    if model.network.takes_text:
        return conditioning_for(model, count, (), [line for line in content.splitlines() if line.strip()], guidance)
    return conditioning_for(model, count, [] if content in ("", EVERY) else [content], (), guidance)


def _named(model: DiffusionModel, name: str, content: str, guidance: float = 1.0) -> NamedImage:
    own = not content.strip() or content == OWN
    told = {} if own else {"text": content} if model.network.takes_text and content != NO_CLASS else {"label": content}
    return open_image(model, name, **told, guidance=guidance)


def _opened(model: DiffusionModel, asked: SourceInputs, guidance: float = 1.0) -> NamedImage:
    name = NAMES[asked.source](asked.number, asked.upload)
    try:
        return _named(model, name, asked.content, guidance)
    except InputError as error:
        # Where the server keeps an upload is nobody's business.
        raise InputError(error.message.replace(name, Path(name).name), key=error.key.replace(name, Path(name).name)) from None


def _image(model: DiffusionModel, asked: SourceInputs, opened: NamedImage) -> Generator[ProgressUpdate, None, Tensor]:
    if opened.source.image is not None:
        return opened.source.image
    images, _ = yield from _followed(generate(model, make_plan(model), opened.source.labels, 1, asked.number))
    return to_model_range(to_tensor(images, model.device))


def _followed(
    views: Iterator[SamplingProgress], on_view: Callable[[SamplingProgress], object] = lambda view: None
) -> Generator[ProgressUpdate, None, tuple[np.ndarray, float]]:
    """Moments of some work, not too many of them; returns its finished images, uint8 (N, H, W, C), and the seconds it took."""
    start, shown, idle, last = time.monotonic(), 0.0, 0.0, []
    for view in views:
        on_view(view)
        last += [view] if view.last else []
        passed = time.monotonic() - start
        if passed > MAX_SECONDS:
            raise InputError(f"{passed:.0f} seconds were not enough; ask for fewer steps or images", key="steps")
        if view.done in (1, view.total) or passed - shown >= REFRESH_SECONDS:
            pictures = [(f"x_t at t = {view.position:.4g}", to_images(view.x)), ("predicted image", to_images(view.x0))]
            yield ProgressUpdate(view.done, view.total, passed - idle, pictures)
            shown = time.monotonic() - start
            # Making and sending pictures is no work of the sampler.
            idle += shown - passed
    return to_images(final_images(iter(last))), passed - idle


def _table(images: np.ndarray, captions: Sequence[str]) -> Image.Image:
    """A grid of images; where they show several things, a column for each if their names are short, else rows."""
    groups = rows_of(captions, len(captions))
    names = [caption for caption, _ in groups]
    if not 1 < len(names) <= MAX_NAMES:
        return _rows(images, ACROSS)
    if max(map(len, names)) > SHORT:
        groups = rows_of(captions, ACROSS)
        return table([list(images[group]) for _, group in groups], [caption for caption, _ in groups], [], TILE)
    paper = np.full_like(images[0], 255)
    rows = list(zip_longest(*(images[group] for _, group in groups), fillvalue=paper))
    return table(rows, [""] * len(rows), names, TILE)


def _rows(images: np.ndarray, across: int) -> Image.Image:
    rows = [list(images[k : k + across]) for k in range(0, len(images), across)]
    return table(rows, [""] * len(rows), [], TILE)


def _cost(plan: SamplingPlan, images: int, seconds: float) -> str:
    count = "1 image" if images == 1 else f"{images} images"
    return f"{count} by {plan.label}, {plan.nfe:,} network evaluations each, {seconds:.1f} s"
