"""Images that commands begin with: drawn where they are samples, stacked where they are several, and varied."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.app.orders import make_plan
from ddpm.app.studio import Source, edit_images, repeated, vary_images
from ddpm.app.views import View, finished
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.settings import Plan


def source_image(model: DiffusionModel, source: Source, plan: Plan | None = None) -> Tensor:
    """The image (1, C, H, W) of a source: its own, or what its latent draws by a deterministic plan; None: by DDIM."""
    # The latent, not varied at all.
    return finished(vary_images(model, plan or make_plan(model), source, 0.0, 1, 0)) if source.image is None else source.image


def stacked(model: DiffusionModel, sources: Sequence[Source]) -> tuple[Tensor, list[tuple[list[int], Tensor | None]]]:
    """The images (N, C, H, W) of sources, and groups of them: (which, what the network is told of these), since it is told of
    all images at once or of none."""
    images = torch.cat([source_image(model, source) for source in sources])
    told = [k for k, source in enumerate(sources) if source.labels is not None]
    untold = [k for k in range(len(sources)) if k not in told]
    groups = [(told, torch.cat([sources[k].labels for k in told]) if told else None), (untold, None)]
    return images, [group for group in groups if group[0]]


def _noised(model: DiffusionModel, plan: Plan, source: Source, strength: float, count: int, seed: int) -> Iterator[View]:
    images = source.image.expand(count, -1, -1, -1)
    return edit_images(model, plan, images, strength, repeated(source.labels, count), seed)


class Method(NamedTuple):
    """A way to vary a source: (model, plan, source, how much, how many, seed) -> Views; and whether it begins with the latent,
    where the source is one, rather than with its image."""

    vary: Callable[[DiffusionModel, Plan, Source, float, int, int], Iterator[View]]
    of_latents: bool = False


EDITS: dict[str, Method] = {"sdedit": Method(_noised), "latent": Method(vary_images, of_latents=True)}
