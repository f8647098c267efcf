"""Images that commands begin with: drawn where they are samples, stacked where they are several, and varied."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ddpm.app.orders import make_plan
from ddpm.app.studio import Source, edit_images, vary_images
from ddpm.app.views import View, finished
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.settings import Plan


def source_image(model: DiffusionModel, source: Source) -> Tensor:
    """The image (1, C, H, W) of a source: its own, or what its latent draws by DDIM."""
    # The latent, not varied at all.
    return finished(vary_images(model, make_plan(model), source, 0.0, 1, 0)) if source.image is None else source.image


def repeated(labels: Tensor | None, count: int) -> Tensor | None:
    """What the network is told of one image (1, ...), for `count` of them."""
    return None if labels is None else labels.expand(count, *labels.shape[1:])


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


# Ways to vary a source that has an image: (model, plan, source, how much, how many, seed) -> Views.
EDITS: dict[str, Callable[[DiffusionModel, Plan, Source, float, int, int], Iterator[View]]] = {
    "sdedit": _noised,
    "latent": vary_images,
}
