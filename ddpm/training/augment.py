"""Non-leaking augmentation for small data sets (Karras et al. 2022, app. F.2, after Karras et al. 2020, "ADA").

The network receives the parameters of each image's transformation, so it learns what the images look like without one; samples
are drawn without parameters, which means zeros.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Standard deviations: log2 of the scale, log2 of the stretch, and the shift as a share of the side.
SCALE, STRETCH, SHIFT = 0.2, 0.2, 0.125


def random_parameters(count: int, probability: float, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Draws a transformation of each image; returns their parameters, (N, 9), without reading a value back from the device.

    It has six parts, in the order of the columns. Each is applied with this probability; the parameters of the others are 0.

    columns 0 and 1: 1 for a horizontal flip; 1 for a vertical flip.
    column 2: log2 of the scale, normal.
    columns 3 and 4: cos - 1 and sin of the angle of a clockwise rotation, uniform.
    columns 5 and 6: s cos 2a and s sin 2a for a stretch by 2^s in the direction a and by 2^-s across it; s is normal, a uniform.
    columns 7 and 8: the shift to the right and down, as shares of the width and the height, normal.
    """

    def angle() -> Tensor:
        return 2 * math.pi * torch.rand(count, generator=generator, device=device)

    applied = torch.rand(6, count, generator=generator, device=device) < probability
    x_flip, y_flip, scale, rotation, stretch, shift = applied.float()
    normal = torch.randn(4, count, generator=generator, device=device)
    size, length, dx, dy = SCALE * normal[0], STRETCH * normal[1], SHIFT * normal[2], SHIFT * normal[3]
    turn, twice_a = angle(), angle()
    columns = [
        x_flip, y_flip, scale * size, rotation * (turn.cos() - 1), rotation * turn.sin(),
        stretch * length * twice_a.cos(), stretch * length * twice_a.sin(), shift * dx, shift * dy,
    ]  # fmt: skip
    return torch.stack(columns, dim=1)


def augment(images: Tensor, parameters: Tensor) -> Tensor:
    """Returns images (N, C, H, W) in [-1, 1], transformed as the parameters (N, 9) of `random_parameters` say.

    Images with zeros, and images that are only flipped, keep their exact values.
    """
    x_flip, y_flip, scale, cos_less_1, sin, a, b, dx, dy = parameters[:, :, None, None].unbind(1)
    height, width = images.shape[2:]
    images = torch.where(x_flip[:, None] > 0, images.flip(3), images)
    images = torch.where(y_flip[:, None] > 0, images.flip(2), images)
    # The place in the image that each pixel shows, in pixels from its centre: the parts inverted, from the last to the first.
    x = torch.arange(width, device=images.device) + 0.5 - width / 2 - dx * width
    y = (torch.arange(height, device=images.device) + 0.5 - height / 2)[:, None] - dy * height
    # The stretch is the exponential of s ln 2 [[cos 2a, sin 2a], [sin 2a, -cos 2a]], its inverse that with -s.
    s = torch.hypot(a, b).clamp(min=1e-12)
    cosh, sinh = torch.cosh(math.log(2) * s), torch.sinh(math.log(2) * s) / s
    x, y = (cosh - sinh * a) * x - sinh * b * y, (cosh + sinh * a) * y - sinh * b * x
    cos = 1 + cos_less_1
    x, y = cos * x + sin * y, cos * y - sin * x
    grid = torch.stack([x * (2 / width), y * (2 / height)], dim=-1) * torch.exp2(-scale)[..., None]
    # Bicubic, since bilinear blurs small images; reflected at the edges, as in EDM, since no color suits the background of all.
    moved = F.grid_sample(images, grid, "bicubic", "reflection", align_corners=False).clamp(-1, 1)
    is_moved = parameters[:, 2:].any(1)[:, None, None, None]
    # In memory they stay (N, H, W, C), as the loader's.
    return torch.where(is_moved, moved, images).contiguous(memory_format=torch.channels_last)
