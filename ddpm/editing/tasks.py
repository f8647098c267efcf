"""Editing tasks: what the command line, the web page and the stage `edit` do with images and a trained model.

A task is a generator that yields a SamplingProgress after each denoising step, so that its caller shows or stops it; the last
one holds the finished images. All images are (N, C, H, W) in [-1, 1]; labels are class ids (N,), word ids (N, L), or None.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.editing import interpolate
from ddpm.editing.img2img import from_strength, image_to_image
from ddpm.editing.inpaint import inpainting
from ddpm.editing.interpolate import Encoded, blended
from ddpm.networks.conditioning import masked_input
from ddpm.sampling.denoiser import Denoiser
from ddpm.sampling.inversion import decode, invert
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.noise import image_noise
from ddpm.sampling.plan import SamplingPlan, make_plan
from ddpm.sampling.progress import SamplingProgress, final_images, with_progress
from ddpm.sampling.samplers import SAMPLERS, Frame, no_noise, sample
from ddpm.sampling.time_grid import denoising_steps


class ImageSource(NamedTuple):
    """An image, or the latent that it is generated from; the other one is None.

    image: (1, C, H, W), or None.
    latent: (1, C, H, W), or None.
    labels: its class id (1,) or word ids (1, L), or None.
    """

    image: Tensor | None
    latent: Tensor | None
    labels: Tensor | None


def repeat_labels(labels: Tensor | None, count: int) -> Tensor | None:
    """Returns the labels of one image, (1, ...) or None, for `count` of them."""
    return None if labels is None else labels.expand(count, *labels.shape[1:])


def source_image(model: DiffusionModel, source: ImageSource, plan: SamplingPlan | None = None) -> Tensor:
    """Returns the image (1, C, H, W) of a source; a latent is decoded by a deterministic plan, None: by DDIM."""
    if source.image is not None:
        return source.image
    return final_images(vary_images(model, plan or make_plan(model), source, 0.0, 1, 0))


def stack_sources(model: DiffusionModel, sources: Sequence[ImageSource]) -> tuple[Tensor, list[tuple[list[int], Tensor | None]]]:
    """Returns the images (N, C, H, W) of sources and groups of them, (indices, labels), since a batch has labels or has none."""
    images = torch.cat([source_image(model, source) for source in sources])
    labeled = [k for k, source in enumerate(sources) if source.labels is not None]
    unlabeled = [k for k, source in enumerate(sources) if source.labels is None]
    groups = [(labeled, torch.cat([sources[k].labels for k in labeled]) if labeled else None), (unlabeled, None)]
    return images, [group for group in groups if group[0]]


def inpaint_images(
    model: DiffusionModel,
    plan: SamplingPlan,
    x0: Tensor,
    mask: Tensor,
    labels: Tensor | None,
    seed: int,
    pass_known: bool | None = None,
) -> Iterator[SamplingProgress]:
    """Fills the pixels of images x0 where mask (N or 1, 1, H, W) is 0; known pixels come back exactly.

    pass_known: whether the network receives the known pixels; None: if it was trained with masks.

    With a grid of `with_repaint_jumps` this is RePaint.
    """
    # The result must not depend on what the image holds at missing pixels.
    mask = mask.to(x0).expand(len(x0), -1, -1, -1)
    x0 = x0 * mask
    noise = image_noise(model, seed, len(x0), 2 * len(plan.grid), use="fill")
    if pass_known is None:
        pass_known = model.network.takes_mask
    denoiser = plan.denoiser(labels, masked_input(x0, mask) if pass_known else None)
    rule = inpainting(plan.rule, x0, mask, noise)
    yield from with_progress(sample(denoiser, rule, model.schedule, plan.grid, noise(), noise), 0, denoising_steps(plan.grid))


def edit_images(
    model: DiffusionModel, plan: SamplingPlan, x0: Tensor, strength: float, labels: Tensor | None, seed: int
) -> Iterator[SamplingProgress]:
    """Noises images x0 to level strength * T and samples from there (SDEdit). Raises InputError unless 0 <= strength <= 1."""
    if model.distilled_steps:
        message = f"{strength:g} starts between the steps of this model, which was distilled for {model.distilled_steps}"
        raise InputError(f"{message}; use its teacher", key="strength")
    noise = image_noise(model, seed, len(x0), len(plan.grid), use="edit")
    grid = from_strength(plan.grid, model.schedule, strength)
    frames = image_to_image(plan.denoiser(labels), plan.rule, model.schedule, grid, x0, noise)
    yield from with_progress(frames, 0, max(1, denoising_steps(grid)))


def interpolate_images(
    model: DiffusionModel, plan: SamplingPlan, a: ImageSource, b: ImageSource, count: int
) -> Iterator[SamplingProgress]:
    """Returns `count` images from a to b, both included, by decoding latents between theirs.

    Two latents are decoded by the plan. If one of the two is a real image, both are encoded by DDIM and come back exactly. If
    their labels differ, the predictions of x0 are blended.

    Raises InputError for a stochastic sampler, for a plan other than plain DDIM with a real image, and for count below 2.
    """
    _check_deterministic(plan)
    if count < 2:
        raise InputError(f"{count} is too few; give 2 or more, both ends included", key="number")
    fractions = torch.linspace(0, 1, count, device=model.device)
    steps = denoising_steps(plan.grid)
    if a.image is None and b.image is None:
        latents = interpolate.slerp(a.latent, b.latent, fractions)
        frames = _decode_by_plan(model, plan, _blend(plan.denoiser, a, b, fractions), latents)
        yield from with_progress(frames, 0, steps)
        return
    _check_plain_ddim(plan)
    total = steps * (5 + (a.image is None) + (b.image is None))
    first, done = yield from _encode(model, plan, a, 0, total)
    second, done = yield from _encode(model, plan, b, done, total)
    denoiser = _blend(model.denoiser, a, b, fractions)
    frames = interpolate.interpolate(denoiser, model.schedule, plan.grid, first, second, fractions)
    yield from with_progress(frames, done, total)


def vary_images(
    model: DiffusionModel, plan: SamplingPlan, source: ImageSource, amount: float, count: int, seed: int
) -> Iterator[SamplingProgress]:
    """Returns `count` variations of an image: its latent mixed with fresh noise; amount 0 is the image itself, 1 a new image.

    Raises InputError for a stochastic sampler, for a plan other than plain DDIM with a real image, and unless 0 <= amount <= 1.
    """
    _check_deterministic(plan)
    noise = image_noise(model, seed, count, 1, use="vary")()
    labels = repeat_labels(source.labels, count)
    steps = denoising_steps(plan.grid)
    if source.image is None:
        latents = interpolate.perturb_latent(source.latent, noise, amount)
        yield from with_progress(_decode_by_plan(model, plan, plan.denoiser(labels), latents), 0, steps)
        return
    _check_plain_ddim(plan)
    encoded, done = yield from _encode(model, plan, source, 0, 3 * steps)
    frames = interpolate.variations(model.denoiser(labels), model.schedule, plan.grid, encoded, noise, amount)
    yield from with_progress(frames, done, 3 * steps)


def reconstruct_images(
    model: DiffusionModel, plan: SamplingPlan, x0: Tensor, labels: Tensor | None
) -> Iterator[SamplingProgress]:
    """Encodes images to noise by DDIM inversion over the plan's grid, and decodes them again.

    The SamplingProgress whose position is the grid's start holds the latents. Raises InputError for a plan other than DDIM with
    eta 0 and without guidance.
    """
    _check_plain_ddim(plan)
    denoiser, steps = model.denoiser(labels), denoising_steps(plan.grid)
    latent = yield from with_progress(invert(denoiser, model.schedule, plan.grid, x0), 0, 2 * steps, final=False)
    yield from with_progress(decode(denoiser, model.schedule, plan.grid, latent.x), steps, 2 * steps)


def _encode(
    model: DiffusionModel, plan: SamplingPlan, source: ImageSource, done: int, total: int
) -> Generator[SamplingProgress, None, tuple[Encoded, int]]:
    """Encodes the image of a source, after decoding it if it is a latent; returns it and the steps done."""
    grid, denoiser, image = plan.grid, model.denoiser(source.labels), source.image
    steps = denoising_steps(grid)
    if image is None:
        frames = _decode_by_plan(model, plan, plan.denoiser(source.labels), source.latent)
        image = (yield from with_progress(frames, done, total, final=False)).x
        done += steps
    latent = (yield from with_progress(invert(denoiser, model.schedule, grid, image), done, total, final=False)).x
    decoded = (yield from with_progress(decode(denoiser, model.schedule, grid, latent), done + steps, total, final=False)).x
    return Encoded(image, latent, image - decoded), done + 2 * steps


def _decode_by_plan(model: DiffusionModel, plan: SamplingPlan, denoiser: Denoiser, latents: Tensor) -> Iterator[Frame]:
    return sample(denoiser, plan.rule, model.schedule, plan.grid, latents, no_noise)


def _blend(make_denoiser: Callable[..., Denoiser], a: ImageSource, b: ImageSource, fractions: Tensor) -> Denoiser:
    """Returns the denoiser of images between two sources, which blends their labels if they differ."""
    first, second = (make_denoiser(repeat_labels(source.labels, len(fractions))) for source in (a, b))
    same = a.labels is b.labels or (a.labels is not None and b.labels is not None and torch.equal(a.labels, b.labels))
    return first if same else blended(first, second, fractions)


def _check_plain_ddim(plan: SamplingPlan) -> None:
    # Real images are encoded by the inverse of DDIM without guidance, which nothing else decodes.
    if plan.label != SAMPLERS["ddim"].label or plan.stochastic or plan.nfe != denoising_steps(plan.grid):
        raise InputError(
            "real images are encoded and decoded by ddim with eta 0 and guidance 1; leave these options out", key="sampler"
        )


def _check_deterministic(plan: SamplingPlan) -> None:
    if plan.stochastic:
        names = ", ".join(name for name, sampler in SAMPLERS.items() if not sampler.stochastic)
        raise InputError(
            f"{plan.label} draws fresh noise; use a deterministic one with eta 0 and churn 0: {names}", key="sampler"
        )


def _noise_and_denoise(
    model: DiffusionModel, plan: SamplingPlan, source: ImageSource, strength: float, count: int, seed: int
) -> Iterator[SamplingProgress]:
    images = source.image.expand(count, -1, -1, -1)
    return edit_images(model, plan, images, strength, repeat_labels(source.labels, count), seed)


class EditMethod(NamedTuple):
    """A way to make variants of an image.

    apply: function (model, plan, source, strength, count, seed) -> Iterator[SamplingProgress].
    uses_latent: whether it starts from the latent of a source that has one, rather than from its image.
    """

    apply: Callable[[DiffusionModel, SamplingPlan, ImageSource, float, int, int], Iterator[SamplingProgress]]
    uses_latent: bool = False


EDITS: dict[str, EditMethod] = {"sdedit": EditMethod(_noise_and_denoise), "latent": EditMethod(vary_images, uses_latent=True)}
