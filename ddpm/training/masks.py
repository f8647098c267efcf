"""Random masks for the training of a masked network."""

import torch
from torch import Tensor

STROKES = 3


def random_masks(count: int, height: int, width: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Returns masks (N, 1, H, W) of 1 (known) and 0 (to be filled), drawn on the device without reading a value back.

    A quarter of them each: all but a box known, only a box known, single pixels known, all but thick strokes known (as in
    Lugmayr et al. 2022, sec. 5, and Saharia et al. 2022, "Palette", sec. 4).
    """

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    y = ((torch.arange(height, device=device) + 0.5) / height)[:, None]
    x = ((torch.arange(width, device=device) + 0.5) / width)[None, :]

    # Boxes by their centre and size, so that the edge cuts many of them; half of an image is one.
    centre, half = rand(2, count, 1, 1), 0.1 + 0.4 * rand(2, count, 1, 1)
    box = ((y - centre[0]).abs() < half[0]) & ((x - centre[1]).abs() < half[1])
    dots = rand(count, height, width) < 0.5 * rand(count, 1, 1)
    # The squared distance of each pixel to line segments.
    start, end = rand(2, count, STROKES, 1, 1), rand(2, count, STROKES, 1, 1)
    along = end - start
    u = ((y - start[0]) * along[0] + (x - start[1]) * along[1]) / along.square().sum(0).clamp(min=1e-6)
    u = u.clamp(0, 1)
    distance = (y - start[0] - u * along[0]).square() + (x - start[1] - u * along[1]).square()
    strokes = (distance < (0.05 + 0.1 * rand(count, STROKES, 1, 1)).square()).any(1)

    kinds = torch.stack([~box, box, dots, ~strokes])
    kind = (len(kinds) * rand(count)).long()
    return kinds[kind, torch.arange(count, device=device)][:, None].float()
