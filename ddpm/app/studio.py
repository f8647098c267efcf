"""What people do with a trained model: the work behind the command line and the web page.

Work is a generator of Views, one after each evaluation of the network, so that whoever runs it can show how far it is and what it
sees, or stop. The last View of each batch holds its finished images. All images are (N, C, H, W) in [-1, 1].
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.files import InputError
from ddpm.networks.conditioning import known_pixels
from ddpm.params import lookup, make
from ddpm.sampling import morph
from ddpm.sampling.denoiser import Denoiser, blended
from ddpm.sampling.editing import decode, image_to_image, inpainting, invert
from ddpm.sampling.grid import evaluations, from_strength
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.noise import ImageNoise
from ddpm.sampling.samplers import SAMPLERS, Frame, Sampler, ancestral_step, sample
from ddpm.sampling.settings import GridChange, Plan, SampleDDIM, SampleDDPM

STEPS = 50
MOST_GUIDANCE = 50.0
MOST_SEED = 2**31 - 1
BATCH = 100
CHOICES: dict[str, Sampler] = {"ddpm": Sampler("DDPM", ancestral_step, ("variance",), stochastic=True), **SAMPLERS}
NO_CLASS = "none"


class View(NamedTuple):
    """A moment of some work: evaluations done and in all, the number of the first image in x, the level that x is at, x and the
    prediction of x0 (B, C, H, W), and whether x is finished."""

    done: int
    total: int
    first: int
    position: float
    x: Tensor
    x0: Tensor
    last: bool


def make_plan(
    model: DiffusionModel,
    change: GridChange | None = None,
    *,
    sampler: str = "ddim",
    steps: int | None = None,
    eta: float = 0.0,
    variance: str = "small",
    spacing: str = "trailing",
    guidance: float = 1.0,
    thresholding: str = "clip",
) -> Plan:
    """How to draw from a model. steps: None is all T for ddpm, and up to 50 for others; eta is ddim's, variance ddpm's; change:
    what is done to the grid (`jumped`).

    Raises InputError, beginning with the option, for one that is unknown, out of range, or not possible with this model.
    """
    lookup(CHOICES, sampler, "sampler")
    total = model.schedule.steps
    if steps is not None and not 1 <= steps <= total:
        raise InputError(f"steps: {steps} is out of range; this model has T = {total}, so give 1 to {total}")
    if not guidance <= MOST_GUIDANCE:
        raise InputError(f"guidance: {guidance} is out of range; give 0 to {MOST_GUIDANCE:g}")
    common = {
        "samples": 1, "batch_size": 1, "checkpoint": "final", "thresholding": thresholding, "threshold_quantile": 0.995,
        "guidance": float(guidance), "guidance_interval": "all",
    }  # fmt: skip
    if sampler == "ddpm":
        if eta:
            raise InputError(f"eta: {eta} has no meaning for sampler 'ddpm', only for ddim; leave it out")
        return make(SampleDDPM, variance=variance, **common).plan(model, steps, change)
    chosen = {"sampler": sampler, "steps": steps or min(STEPS, total), "eta": float(eta), "spacing": spacing, "churn": 0.0}
    return make(SampleDDIM, **chosen, **common).plan(model, change)


def class_number(model: DiffusionModel, name: str) -> int:
    """The number of a class by its name, in whatever case, or by the number itself. Raises InputError for an unknown one."""
    names = model.data["class_names"]
    for k, known in enumerate(names):
        if name.strip().lower() == known.lower():
            return k
    number = name.strip()
    # Python refuses to read numbers of thousands of digits.
    if number.isdecimal() and len(number) < 10 and int(number) < len(names):
        return int(number)
    return names.index(lookup(dict.fromkeys(names), name, "label"))


def tell(
    model: DiffusionModel, count: int, labels: Sequence[str] = (), texts: Sequence[str] = ()
) -> tuple[Tensor | None, list[str]]:
    """What the network is told of `count` images, and what to write beside each: labels (names or numbers of classes) or texts,
    in turn; without either, every class in turn. The label `none` is no class, and so is an empty text.

    Raises InputError for what the model does not take or know.
    """
    if labels and texts:
        raise InputError("text: cannot be given together with label; a text says what to draw by itself")
    if texts:
        read = model.read(texts)
        turns = torch.arange(count) % len(texts)
        return read[turns.to(read.device)], [texts[k] for k in turns.tolist()]
    names = model.data["class_names"]
    if not labels:
        numbers = model.balanced_labels(count)
        return numbers, [""] * count if numbers is None else [names[k] for k in numbers.tolist()]
    if not model.network.conditional:
        raise InputError("label: this model takes no class (model.conditioning); leave it out")
    if set(labels) == {NO_CLASS}:
        _check_knows_no_class(model)
        return None, [""] * count
    if NO_CLASS in labels:
        raise InputError(f"label: {NO_CLASS!r} cannot be mixed with classes; draw twice")
    numbers = [class_number(model, name) for name in labels]
    chosen = [numbers[k % len(numbers)] for k in range(count)]
    return torch.tensor(chosen, device=model.device), [names[k] for k in chosen]


def _check_knows_no_class(model: DiffusionModel) -> None:
    if not model.knows_no_class:
        raise InputError("label: 'none' needs a model that was also trained without its class (train.condition_dropout above 0)")


def image_noise(model: DiffusionModel, seed: int, count: int, draws: int, first: int = 0) -> ImageNoise:
    """All the noise of images first .. first + count - 1 of a seed. Raises InputError for a seed that is none."""
    if not 0 <= seed <= MOST_SEED:
        raise InputError(f"seed: {seed} is out of range; give 0 to {MOST_SEED}")
    height, width, channels = model.shape
    return ImageNoise(model.device, (count, channels, height, width), first, draws, "studio", seed)


def latent_of(model: DiffusionModel, seed: int) -> Tensor:
    """The noise (1, C, H, W) that image 0 of a seed is drawn from."""
    return image_noise(model, seed, 1, 1)()


def draw_images(
    model: DiffusionModel, plan: Plan, labels: Tensor | None, count: int, seed: int, batch: int = BATCH
) -> Iterator[View]:
    """Draw images, in batches; image i of a seed is the same in whatever batch."""
    work = evaluations(plan.grid)
    starts = range(0, count, batch)
    for k, first in enumerate(starts):
        size = min(batch, count - first)
        noise = image_noise(model, seed, size, len(plan.grid) if plan.stochastic else 1, first)
        denoiser = plan.denoiser(None if labels is None else labels[first : first + size])
        frames = sample(denoiser, plan.rule, model.schedule, plan.grid, noise(), noise)
        yield from _views(frames, k * work, len(starts) * work, first)


def inpaint_images(
    model: DiffusionModel, plan: Plan, x0: Tensor, mask: Tensor, labels: Tensor | None, seed: int, shown: bool | None = None
) -> Iterator[View]:
    """Fill what is missing of images x0, where mask (N or 1, 1, H, W) is 0; known pixels come back exactly.

    A plan whose grid is `jumped` is RePaint. shown: whether the network is shown the known pixels as well; None: if it was
    trained for that.
    """
    # Nothing of a missing pixel may be seen, whatever the image holds there.
    mask = mask.to(x0).expand(len(x0), -1, -1, -1)
    x0 = x0 * mask
    noise = image_noise(model, seed, len(x0), 2 * len(plan.grid))
    if shown is None:
        shown = model.network.masked
    denoiser = plan.denoiser(labels, known_pixels(x0, mask) if shown else None)
    rule = inpainting(plan.rule, x0, mask, noise)
    yield from _views(sample(denoiser, rule, model.schedule, plan.grid, noise(), noise), 0, evaluations(plan.grid))


def edit_images(
    model: DiffusionModel, plan: Plan, x0: Tensor, strength: float, labels: Tensor | None, seed: int
) -> Iterator[View]:
    """Image to image (SDEdit): the images noised to level strength * T and drawn from there."""
    noise = image_noise(model, seed, len(x0), len(plan.grid))
    work = evaluations(from_strength(plan.grid, model.schedule, strength))
    frames = image_to_image(plan.denoiser(labels), plan.rule, model.schedule, plan.grid, x0, strength, noise)
    yield from _views(frames, 0, max(1, work))


class Source(NamedTuple):
    """Where an image comes from: itself (1, C, H, W), or the latent (1, C, H, W) that draws it, the other being None; and what
    the network is told of it, (1, ...) or None."""

    image: Tensor | None
    latent: Tensor | None
    labels: Tensor | None


def interpolate_images(model: DiffusionModel, plan: Plan, a: Source, b: Source, count: int) -> Iterator[View]:
    """`count` images from one to the other, both included: latents along the arc between them, drawn deterministically.

    Two latents are drawn by the plan. Where one end is a real image, both ends are encoded by DDIM, and come back exactly. Where
    the two are told differently, the predictions blend.
    Raises InputError for a stochastic sampler, and for less than two images.
    """
    _check_deterministic(plan)
    if count < 2:
        raise InputError(f"number: {count} is too few to lead from one image to another; give 2 or more")
    fractions = torch.linspace(0, 1, count, device=model.device)
    if a.image is None and b.image is None:
        start = morph.slerp(a.latent, b.latent, fractions)
        frames = sample(_between(plan.denoiser, a, b, fractions), plan.rule, model.schedule, plan.grid, start, _no_noise)
        yield from _views(frames, 0, evaluations(plan.grid))
        return
    grid = _plain(plan.grid)
    work = evaluations(grid)
    total = work * (5 + (a.image is None) + (b.image is None))
    first, done = yield from _encoded(model, plan, a, 0, total)
    second, done = yield from _encoded(model, plan, b, done, total)
    frames = morph.interpolate(_between(model.denoiser, a, b, fractions), model.schedule, grid, first, second, fractions)
    yield from _views(frames, done, total)


def vary_images(model: DiffusionModel, plan: Plan, source: Source, amount: float, count: int, seed: int) -> Iterator[View]:
    """`count` variations of an image: its latent mixed with fresh noise; amount 0 is the image itself, 1 another one.

    Raises InputError for a stochastic sampler, and for an amount out of range.
    """
    _check_deterministic(plan)
    fresh = image_noise(model, seed, count, 1)()
    labels = None if source.labels is None else source.labels.expand(count, *source.labels.shape[1:])
    if source.image is None:
        start = morph.vary(source.latent, fresh, amount)
        frames = sample(plan.denoiser(labels), plan.rule, model.schedule, plan.grid, start, _no_noise)
        yield from _views(frames, 0, evaluations(plan.grid))
        return
    grid = _plain(plan.grid)
    total = 3 * evaluations(grid)
    encoded, done = yield from _encoded(model, plan, source, 0, total)
    frames = morph.variations(model.denoiser(labels), model.schedule, grid, encoded, fresh, amount)
    yield from _views(frames, done, total)


def reconstruct_images(model: DiffusionModel, plan: Plan, x0: Tensor, labels: Tensor | None) -> Iterator[View]:
    """Encode images to noise by DDIM inversion over the plan's grid, and decode them again; the latents are in the View whose
    `position` is the grid's start."""
    grid, denoiser = _plain(plan.grid), model.denoiser(labels)
    total = 2 * evaluations(grid)
    latent = yield from _views(invert(denoiser, model.schedule, grid, x0), 0, total, final=False)
    yield from _views(decode(denoiser, model.schedule, grid, latent.x), total // 2, total)


def finished(views: Iterator[View], on_view: Callable[[View], object] = lambda view: None) -> Tensor:
    """Run some work to its end: its finished images (N, C, H, W); each View is handed to `on_view`.

    Raises InputError if an image is not finite, which a picture would hide.
    """
    images = []
    for view in views:
        on_view(view)
        if view.last:
            images.append(view.x)
    images = torch.cat(images)
    if not images.isfinite().all():
        raise InputError("thresholding: without it the images are not finite; use 'clip', or less guidance")
    return images


def _views(frames: Iterator[Frame], done: int, total: int, first: int = 0, final: bool = True) -> Iterator[View]:
    """Frames as Views, `done` evaluations of `total` having been made; returns the last Frame."""
    ahead = next(frames)
    for frame in frames:
        done += 1
        yield View(done, total, first, ahead.position, ahead.x, ahead.x0, False)
        ahead = frame
    yield View(done + 1, total, first, ahead.position, ahead.x, ahead.x0, final)
    return ahead


def _encoded(model: DiffusionModel, plan: Plan, source: Source, done: int, total: int) -> Iterator[View]:
    """Views of an image being encoded, after being drawn if it is a latent; returns (Encoded, evaluations done)."""
    grid, denoiser, image = _plain(plan.grid), model.denoiser(source.labels), source.image
    work = evaluations(grid)
    if image is None:
        frames = sample(plan.denoiser(source.labels), plan.rule, model.schedule, plan.grid, source.latent, _no_noise)
        image = (yield from _views(frames, done, total, final=False)).x
        done += work
    latent = (yield from _views(invert(denoiser, model.schedule, grid, image), done, total, final=False)).x
    decoded = (yield from _views(decode(denoiser, model.schedule, grid, latent), done + work, total, final=False)).x
    return morph.Encoded(image, latent, image - decoded), done + 2 * work


def _between(denoiser: Callable[..., Denoiser], a: Source, b: Source, fractions: Tensor) -> Denoiser:
    """The denoiser of images between two sources, told of both where they differ."""

    def of(source: Source) -> Denoiser:
        labels = source.labels
        return denoiser(None if labels is None else labels.expand(len(fractions), *labels.shape[1:]))

    same = a.labels is b.labels or (a.labels is not None and b.labels is not None and torch.equal(a.labels, b.labels))
    return of(a) if same else blended(of(a), of(b), fractions)


def _plain(grid: np.ndarray) -> np.ndarray:
    """The levels of a grid, each once, falling: without the stays of samplers that evaluate twice."""
    return np.unique(grid)[::-1]


def _check_deterministic(plan: Plan) -> None:
    if plan.stochastic:
        raise InputError(
            "sampler: one that draws fresh noise leads nowhere twice; use a deterministic one, such as ddim with eta 0"
        )


def _no_noise() -> Tensor:
    raise AssertionError("a deterministic step drew noise")
