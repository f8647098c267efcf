"""The building blocks of the U-Net.

Each computes what PyTorch's own layers compute; PackedConv2d and Upsample do so faster on CPU.
"""

import math
import platform
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.GroupNorm]
# The operators that torch.compile uses for convolutions with fixed weights on CPU; tested on x86 alone.
_CAN_PACK = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
)


class PackedConv2d(nn.Conv2d):
    """nn.Conv2d that keeps its kernel in oneDNN's memory layout, in eval mode on CPU without gradients.

    Without this, PyTorch converts the layout in every call, which takes about as long as the convolution of a few images, and
    computes a single small image with a slower library. Sampling 16 images of 8x8, or one of 32x32, gains 10 to 30 %.

    The packed kernel is made again when the shape of the input changes or the weight is replaced or changed in place (PyTorch
    counts these changes). `train()`, `eval()` and a pass with gradients drop it. A change through `weight.data` without one of
    these is not noticed.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._packed: tuple[tuple, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._may_pack(x):
            return self._packed_forward(x)
        if self._packed is not None and torch.is_grad_enabled():
            self._packed = None  # fused optimizers change weights without counting
        return super().forward(x)

    def _may_pack(self, x: Tensor) -> bool:
        return (
            _CAN_PACK
            and not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.is_contiguous(memory_format=torch.channels_last)
            and not (torch.is_autocast_enabled("cpu") or self.weight.is_inference())
        )

    def _packed_forward(self, x: Tensor) -> Tensor:
        geometry = self.padding, self.stride, self.dilation, self.groups
        key = x.shape, self.weight.data_ptr(), self.weight._version
        if self._packed is None or self._packed[0] != key:
            weight = self.weight.detach()
            # The weight is kept, so that no other tensor can get its address.
            self._packed = key, weight, torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, x.shape)
        return torch.ops.mkldnn._convolution_pointwise(x, self._packed[2], self.bias, *geometry, "none", [], "")

    def train(self, mode: bool = True) -> "PackedConv2d":
        self._packed = None
        return super().train(mode)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_packed": None}


class Upsample(PackedConv2d):
    """Upsamples by 2 (nearest neighbour) and applies a 3x3 convolution: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # The 9 taps cover 4 different pixels. With the taps of each pixel summed, this is a transposed convolution with a 4x4
        # kernel: 4/9 of the products, and no enlarged image. On CPU it halves the time of images larger than the kernel.
        if x.device.type != "cpu" or x.numel() < self.weight.numel():
            return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        kernel = F.avg_pool2d(self.weight.flip(2, 3), 2, stride=1, padding=1, divisor_override=1)
        return F.conv_transpose2d(x, kernel.transpose(0, 1), self.bias, stride=2, padding=1)


class Downsample(PackedConv2d):
    """Applies a 3x3 convolution of stride 2: (B, C, H, W) -> (B, C, H / 2, W / 2), for even H and W.

    corner: pad with zeros at the right and the bottom only, not on all sides.
    """

    def __init__(self, channels: int, corner: bool):
        super().__init__(channels, channels, 3, stride=2, padding=0 if corner else 1)
        self.corner = corner

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.corner else x)


class ResidualBlock(nn.Module):
    """Two convolutions with group norm and a residual connection; `shift`, from the embedding, is added between them.

    (B, C_in, H, W), (B, C_out, 1, 1) -> (B, C_out, H, W).
    """

    def __init__(self, inputs: int, outputs: int, dropout: float, norm: Norm):
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), PackedConv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = norm(outputs), PackedConv2d(outputs, outputs, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.skip = PackedConv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        zero_init(self.conv2)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        # In place, which saves memory traffic on CPU: nothing else uses the output of a convolution.
        h = self.conv1(silu(self.norm1(x))).add_(shift)
        return self.conv2(self.dropout(silu(self.norm2(h)))).add_(self.skip(x))


class Attention(nn.Module):
    """Multi-head self-attention over the pixels, with a residual connection: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, heads: int, norm: Norm):
        super().__init__()
        self.heads = heads
        self.norm, self.qkv = norm(channels), PackedConv2d(channels, 3 * channels, 1)
        self.out = zero_init(PackedConv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # (B, 3C, H, W) -> 3 x (B, heads, pixels, C / heads)
        q, k, v = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, -1).transpose(-1, -2).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v)
        return self.out(h.transpose(-1, -2).reshape(batch, channels, height, width)).add_(x)


class UNetLevel(nn.Module):
    """The residual blocks of one resolution, one per (inputs, outputs) of `widths`; with `heads`, attention after each."""

    def __init__(self, widths: list[tuple[int, int]], dropout: float, heads: int | None, norm: Norm):
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(i, o, dropout, norm) for i, o in widths)
        self.attentions = nn.ModuleList(Attention(o, heads, norm) if heads else nn.Identity() for _, o in widths)


def time_embedding(t: Tensor, size: int, shift: int = 1) -> Tensor:
    """Returns the sinusoidal embedding [sin, cos] of t (B,), (B, size), with wavelengths from 2 pi to 20,000 pi.

    shift: 1 as in Ho et al. 2020's code; 0 as in Vaswani et al. 2017, where the longest wavelength is one step shorter.
    """
    half = size // 2
    frequency = torch.exp(-math.log(10_000) / max(half - shift, 1) * torch.arange(half, device=t.device, dtype=torch.float32))
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def norm_groups(channels: int) -> int:
    """Returns the number of groups of all group norms of a network whose first level has these channels.

    It is the largest number up to 32 that divides the channels (and so those of every level) and leaves 4 of them per group.
    """
    return max(g for g in range(1, 33) if channels % g == 0 and (channels // g >= 4 or g == 1))


def silu(x: Tensor) -> Tensor:
    """Returns x sigmoid(x); it overwrites x when gradients are disabled, so x must not be used afterwards."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def zero_init(layer: nn.Conv2d) -> nn.Conv2d:
    """Sets weights and bias to zero, so that every residual branch starts as the identity (Ho et al. 2020's code)."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
