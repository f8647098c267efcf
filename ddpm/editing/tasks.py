"""What people do with a trained model: the work behind the command line and the web page.

Work is a generator of Views, one after each evaluation of the network, so that whoever runs it can show how far it is and what it
sees, or stop. The last View of each batch holds its finished images. All images are (N, C, H, W) in [-1, 1].


Images that commands begin with: drawn where they are samples, stacked where they are several, and varied."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.editing import interpolate
from ddpm.editing.img2img import from_strength, image_to_image
from ddpm.editing.inpaint import inpainting
from ddpm.editing.interpolate import blended
from ddpm.networks.conditioning import masked_input
from ddpm.sampling.denoiser import Denoiser
from ddpm.sampling.inversion import decode, invert
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.noise import image_noise
from ddpm.sampling.plan import make_plan
from ddpm.sampling.progress import SamplingProgress, final_images, with_progress
from ddpm.sampling.samplers import SAMPLERS, sample
from ddpm.sampling.settings import SamplingPlan
from ddpm.sampling.time_grid import denoising_steps


def inpaint_images(
    model: DiffusionModel,
    plan: SamplingPlan,
    x0: Tensor,
    mask: Tensor,
    labels: Tensor | None,
    seed: int,
    shown: bool | None = None,
) -> Iterator[SamplingProgress]:
    """Fill what is missing of images x0, where mask (N or 1, 1, H, W) is 0; known pixels come back exactly.

    With a grid made by `with_repaint_jumps` this is RePaint. shown: whether the network receives the known pixels; None: if it
    was trained with masks.
    """
    # Nothing of a missing pixel may be seen, whatever the image holds there.
    mask = mask.to(x0).expand(len(x0), -1, -1, -1)
    x0 = x0 * mask
    noise = image_noise(model, seed, len(x0), 2 * len(plan.grid), use="fill")
    if shown is None:
        shown = model.network.takes_mask
    denoiser = plan.denoiser(labels, masked_input(x0, mask) if shown else None)
    rule = inpainting(plan.rule, x0, mask, noise)
    yield from with_progress(sample(denoiser, rule, model.schedule, plan.grid, noise(), noise), 0, denoising_steps(plan.grid))


def edit_images(
    model: DiffusionModel, plan: SamplingPlan, x0: Tensor, strength: float, labels: Tensor | None, seed: int
) -> Iterator[SamplingProgress]:
    """Image to image (SDEdit): the images noised to level strength * T and drawn from there."""
    noise = image_noise(model, seed, len(x0), len(plan.grid), use="edit")
    work = denoising_steps(from_strength(plan.grid, model.schedule, strength))
    frames = image_to_image(plan.denoiser(labels), plan.rule, model.schedule, plan.grid, x0, strength, noise)
    yield from with_progress(frames, 0, max(1, work))


class Source(NamedTuple):
    """Where an image comes from: itself (1, C, H, W), or the latent (1, C, H, W) that draws it, the other being None; and what
    the network is told of it, (1, ...) or None."""

    image: Tensor | None
    latent: Tensor | None
    labels: Tensor | None


def repeated(labels: Tensor | None, count: int) -> Tensor | None:
    """What the network is told of one image (1, ...), for `count` of them."""
    return None if labels is None else labels.expand(count, *labels.shape[1:])


def interpolate_images(model: DiffusionModel, plan: SamplingPlan, a: Source, b: Source, count: int) -> Iterator[SamplingProgress]:
    """`count` images from one to the other, both included: latents along the arc between them, drawn deterministically.

    Two latents are drawn by the plan. Where one end is a real image, both ends are encoded by DDIM, and come back exactly. Where
    the two are told differently, the predictions blend.
    Raises InputError for a stochastic sampler, and for less than two images.
    """
    _check_deterministic(plan)
    if count < 2:
        raise InputError(f"{count} is too few to lead from one image to another; give 2 or more", key="number")
    fractions = torch.linspace(0, 1, count, device=model.device)
    if a.image is None and b.image is None:
        start = interpolate.slerp(a.latent, b.latent, fractions)
        frames = sample(_between(plan.denoiser, a, b, fractions), plan.rule, model.schedule, plan.grid, start, _no_noise)
        yield from with_progress(frames, 0, denoising_steps(plan.grid))
        return
    _check_plain(plan)
    total = denoising_steps(plan.grid) * (5 + (a.image is None) + (b.image is None))
    first, done = yield from _encoded(model, plan, a, 0, total)
    second, done = yield from _encoded(model, plan, b, done, total)
    frames = interpolate.interpolate(
        _between(model.denoiser, a, b, fractions), model.schedule, plan.grid, first, second, fractions
    )
    yield from with_progress(frames, done, total)


def vary_images(
    model: DiffusionModel, plan: SamplingPlan, source: Source, amount: float, count: int, seed: int
) -> Iterator[SamplingProgress]:
    """`count` variations of an image: its latent mixed with fresh noise; amount 0 is the image itself, 1 another one.

    Raises InputError for a stochastic sampler, and for an amount out of range.
    """
    _check_deterministic(plan)
    fresh = image_noise(model, seed, count, 1, use="vary")()
    labels = repeated(source.labels, count)
    if source.image is None:
        start = interpolate.perturb_latent(source.latent, fresh, amount)
        frames = sample(plan.denoiser(labels), plan.rule, model.schedule, plan.grid, start, _no_noise)
        yield from with_progress(frames, 0, denoising_steps(plan.grid))
        return
    _check_plain(plan)
    total = 3 * denoising_steps(plan.grid)
    encoded, done = yield from _encoded(model, plan, source, 0, total)
    frames = interpolate.variations(model.denoiser(labels), model.schedule, plan.grid, encoded, fresh, amount)
    yield from with_progress(frames, done, total)


def reconstruct_images(
    model: DiffusionModel, plan: SamplingPlan, x0: Tensor, labels: Tensor | None
) -> Iterator[SamplingProgress]:
    """Encode images to noise by DDIM inversion over the plan's grid, and decode them again; the latents are in the View whose
    `position` is the grid's start. Raises InputError for a plan other than DDIM without guidance."""
    _check_plain(plan)
    denoiser, total = model.denoiser(labels), 2 * denoising_steps(plan.grid)
    latent = yield from with_progress(invert(denoiser, model.schedule, plan.grid, x0), 0, total, final=False)
    yield from with_progress(decode(denoiser, model.schedule, plan.grid, latent.x), total // 2, total)


def _encoded(model: DiffusionModel, plan: SamplingPlan, source: Source, done: int, total: int) -> Iterator[SamplingProgress]:
    """Views of an image being encoded, after being drawn if it is a latent; returns (Encoded, evaluations done)."""
    grid, denoiser, image = plan.grid, model.denoiser(source.labels), source.image
    work = denoising_steps(grid)
    if image is None:
        frames = sample(plan.denoiser(source.labels), plan.rule, model.schedule, plan.grid, source.latent, _no_noise)
        image = (yield from with_progress(frames, done, total, final=False)).x
        done += work
    latent = (yield from with_progress(invert(denoiser, model.schedule, grid, image), done, total, final=False)).x
    decoded = (yield from with_progress(decode(denoiser, model.schedule, grid, latent), done + work, total, final=False)).x
    return interpolate.Encoded(image, latent, image - decoded), done + 2 * work


def _between(denoiser: Callable[..., Denoiser], a: Source, b: Source, fractions: Tensor) -> Denoiser:
    """The denoiser of images between two sources, told of both where they differ."""

    def of(source: Source) -> Denoiser:
        return denoiser(repeated(source.labels, len(fractions)))

    same = a.labels is b.labels or (a.labels is not None and b.labels is not None and torch.equal(a.labels, b.labels))
    return of(a) if same else blended(of(a), of(b), fractions)


def _check_plain(plan: SamplingPlan) -> None:
    """Real images are encoded by the inverse of DDIM without guidance, which nothing else decodes."""
    if plan.label != SAMPLERS["ddim"].label or plan.stochastic or plan.nfe != denoising_steps(plan.grid):
        raise InputError(
            "real images are encoded and decoded by ddim with eta 0 and guidance 1; leave these options out", key="sampler"
        )


def _check_deterministic(plan: SamplingPlan) -> None:
    if plan.stochastic:
        raise InputError(
            "one that draws fresh noise leads nowhere twice; use a deterministic one, such as ddim with eta 0", key="sampler"
        )


def _no_noise() -> Tensor:
    raise AssertionError("a deterministic step drew noise")


def source_image(model: DiffusionModel, source: Source, plan: SamplingPlan | None = None) -> Tensor:
    """The image (1, C, H, W) of a source: its own, or what its latent draws by a deterministic plan; None: by DDIM."""
    # The latent, not varied at all.
    return final_images(vary_images(model, plan or make_plan(model), source, 0.0, 1, 0)) if source.image is None else source.image


def stacked(model: DiffusionModel, sources: Sequence[Source]) -> tuple[Tensor, list[tuple[list[int], Tensor | None]]]:
    """The images (N, C, H, W) of sources, and groups of them: (which, what the network is told of these), since it is told of
    all images at once or of none."""
    images = torch.cat([source_image(model, source) for source in sources])
    told = [k for k, source in enumerate(sources) if source.labels is not None]
    untold = [k for k in range(len(sources)) if k not in told]
    groups = [(told, torch.cat([sources[k].labels for k in told]) if told else None), (untold, None)]
    return images, [group for group in groups if group[0]]


def _noised(
    model: DiffusionModel, plan: SamplingPlan, source: Source, strength: float, count: int, seed: int
) -> Iterator[SamplingProgress]:
    images = source.image.expand(count, -1, -1, -1)
    return edit_images(model, plan, images, strength, repeated(source.labels, count), seed)


class Method(NamedTuple):
    """A way to vary a source: (model, plan, source, how much, how many, seed) -> Views; and whether it begins with the latent,
    where the source is one, rather than with its image."""

    vary: Callable[[DiffusionModel, SamplingPlan, Source, float, int, int], Iterator[SamplingProgress]]
    of_latents: bool = False


EDITS: dict[str, Method] = {"sdedit": Method(_noised), "latent": Method(vary_images, of_latents=True)}
