"""Which pixels of a training image a masked network is shown: many shapes, so that it learns to fill whatever is left out."""

import torch
from torch import Tensor

STROKES = 3


def random_masks(count: int, height: int, width: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Masks (N, 1, H, W) of 0 (to be filled) and 1 (known), drawn on the device without a value read back.

    In equal shares: a box left out, nothing but a box known, single pixels known, and thick strokes left out (the shapes of
    Lugmayr et al. 2022, sec. 5, and Saharia et al. 2022, "Palette", sec. 4).
    """

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    y = ((torch.arange(height, device=device) + 0.5) / height)[:, None]
    x = ((torch.arange(width, device=device) + 0.5) / width)[None, :]

    # Boxes by their middle and size, so that many are cut by the edge: half of an image is one of them.
    middle, half = draw(2, count, 1, 1), 0.1 + 0.4 * draw(2, count, 1, 1)
    box = ((y - middle[0]).abs() < half[0]) & ((x - middle[1]).abs() < half[1])
    dots = draw(count, height, width) < 0.5 * draw(count, 1, 1)
    # The distance of each pixel to line segments.
    start, end = draw(2, count, STROKES, 1, 1), draw(2, count, STROKES, 1, 1)
    along = end - start
    share = ((y - start[0]) * along[0] + (x - start[1]) * along[1]) / along.square().sum(0).clamp(min=1e-6)
    share = share.clamp(0, 1)
    apart = (y - start[0] - share * along[0]).square() + (x - start[1] - share * along[1]).square()
    strokes = (apart < (0.05 + 0.1 * draw(count, STROKES, 1, 1)).square()).any(1)

    kinds = torch.stack([~box, box, dots, ~strokes])
    kind = (len(kinds) * draw(count)).long()
    return kinds[kind, torch.arange(count, device=device)][:, None].float()
