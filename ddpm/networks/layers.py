"""Convolutions as PyTorch's own, with faster ways to the same numbers on CPU."""

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What torch.compile makes of frozen convolutions on CPU; tried on x86 alone.
_CAN_PACK = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
)


class PackedConv2d(nn.Conv2d):
    """nn.Conv2d which, in eval mode on CPU and without gradients, keeps its kernel in the layout that oneDNN computes with.

    Otherwise every call changes the layout, which for few images takes about as long as the convolution, and PyTorch leaves
    single small images to a slower library: drawing 16 images of 8x8, or one of 32x32, gains 10 to 30 %.

    The layout is made anew for another shape of the input and for other weights, which PyTorch's count of changes in place
    tells, and dropped by `train()`, by `eval()` and by a pass with gradients. Only a change through `weight.data` that none of
    these follows goes unseen.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._packed: tuple[tuple, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._may_pack(x):
            return self._packed_forward(x)
        if self._packed is not None and torch.is_grad_enabled():
            self._packed = None  # fused optimizers do not count their changes
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
            # The weight is kept too: while it is, no other tensor can come to lie at its address.
            self._packed = key, weight, torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, x.shape)
        return torch.ops.mkldnn._convolution_pointwise(x, self._packed[2], self.bias, *geometry, "none", [], "")

    def train(self, mode: bool = True) -> "PackedConv2d":
        self._packed = None
        return super().train(mode)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_packed": None}


class Upsample(PackedConv2d):
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # The 9 taps see 4 pixels. With the taps of each pixel summed, this is a transposed convolution by a 4x4 kernel: 4/9 of
        # the products, and no enlarged image. On CPU it takes about half the time, once the image outweighs the kernel.
        if x.device.type != "cpu" or x.numel() < self.weight.numel():
            return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        kernel = F.avg_pool2d(self.weight.flip(2, 3), 2, stride=1, padding=1, divisor_override=1)
        return F.conv_transpose2d(x, kernel.transpose(0, 1), self.bias, stride=2, padding=1)


class Downsample(PackedConv2d):
    """A 3x3 convolution of stride 2: (B, C, H, W) -> (B, C, H / 2, W / 2), for even sides. Zeros stand all around the image, or,
    for `corner`, right and below of it."""

    def __init__(self, channels: int, corner: bool):
        super().__init__(channels, channels, 3, stride=2, padding=0 if corner else 1)
        self.corner = corner

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.corner else x)
