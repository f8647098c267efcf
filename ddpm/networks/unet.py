"""The U-Net of DDPM (Ho et al. 2020, app. B), with every size a setting."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ddpm.core.files import InputError
from ddpm.core.params import OneOf, OrWord, Section
from ddpm.networks.conditioning import CONDITIONINGS, NoConditioning, TextEncoder
from ddpm.networks.layers import Downsample, PackedConv2d, Upsample

Size = Annotated[int, Field(ge=1)]
Norm = Callable[[int], nn.GroupNorm]


class UNetSettings(Section):
    """The `model` section: the shape of the network."""

    channels: Annotated[int, Field(ge=2, multiple_of=2)]
    channel_mults: Annotated[list[Size], Field(min_length=1)]
    blocks_per_level: Size
    attention_levels: list[Annotated[int, Field(ge=0)]]
    middle_attention: bool
    heads: Size
    time_embedding: Annotated[Size | None, OrWord("auto")]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    conditioning: Annotated[str, OneOf(CONDITIONINGS)]


class CompatOptions(Section):
    """In what networks that were trained elsewhere differ from ours, where params.yaml offers no choice.

    norm_groups: groups of every group norm; None: `norm_groups`. norm_eps: what it adds to the variance. corner_padding: where
    the image is halved, zeros stand right and below of it, as in TensorFlow and so in Ho et al. 2020, not all around.
    head_channels: channels of an attention head, in place of the number of heads. frequency_shift: of `time_embedding`.
    """

    norm_groups: Size | None = None
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    corner_padding: bool = False
    head_channels: Size | None = None
    frequency_shift: Literal[0, 1] = 1


DEFAULTS = CompatOptions()


def time_embedding(t: Tensor, size: int, shift: int = 1) -> Tensor:
    """Sinusoidal embedding [sin, cos] of t (B,) -> (B, size), wavelengths from 2 pi to 20,000 pi (Ho et al. 2020's code); with
    shift 0 the longest is one step shorter, as in Vaswani et al. 2017."""
    half = size // 2
    frequency = torch.exp(-math.log(10_000) / max(half - shift, 1) * torch.arange(half, device=t.device, dtype=torch.float32))
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def norm_groups(channels: int) -> int:
    """Groups of all group norms of a network whose first level has these channels: the largest number up to 32 that divides
    them, so that of every level too, and leaves 4 channels in each if it can."""
    return max(g for g in range(1, 33) if channels % g == 0 and (channels // g >= 4 or g == 1))


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x) of a tensor that nothing else reads: written over it where no gradient will ask for it."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResidualBlock(nn.Module):
    """Two normalized convolutions with a shift of each image's channels between them, which carries the embedding:
    (B, C_in, H, W), (B, C_out, 1, 1) -> (B, C_out, H, W)."""

    def __init__(self, inputs: int, outputs: int, dropout: float, norm: Norm):
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), PackedConv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = norm(outputs), PackedConv2d(outputs, outputs, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.skip = PackedConv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        zero_init(self.conv2)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        # In place: a convolution's output is needed by nothing else, and on CPU these sums cost their memory traffic.
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
    """The blocks of one resolution; each may be followed by attention."""

    def __init__(self, widths: list[tuple[int, int]], dropout: float, heads: int | None, norm: Norm):
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(i, o, dropout, norm) for i, o in widths)
        self.attentions = nn.ModuleList(Attention(o, heads, norm) if heads else nn.Identity() for _, o in widths)


class UNet(nn.Module):
    """Predicts the target of the chosen parameterization from a noisy image.

    forward(x (B, C, H, W), t (B,) float, labels, known) -> (B, outputs, H, W). labels: class numbers (B,) or word ids (B, L),
    int64, or None where nothing is told. known: (B, C + 1, H, W) of `masked_input`, or None where no pixel is known; ignored by
    a network without a mask. `outputs` is C, or 2C to learn the variance too. H and W must be divisible by 2 ** (levels - 1).
    Raises InputError for sizes that do not fit together.
    """

    def __init__(
        self,
        settings: UNetSettings,
        shape: tuple[int, int, int],
        class_names: Sequence[str],
        outputs: int | None = None,
        compat: CompatOptions = DEFAULTS,
    ):
        super().__init__()
        check_sizes(settings, shape, compat)
        image_channels, self.outputs = shape[2], outputs or shape[2]
        widths = [settings.channels * mult for mult in settings.channel_mults]
        base, embedding = settings.channels, settings.time_embedding or 4 * settings.channels
        norm = partial(nn.GroupNorm, compat.norm_groups or norm_groups(base), eps=compat.norm_eps)
        self.base, self.frequency_shift = base, compat.frequency_shift
        self.time = nn.Sequential(nn.Linear(base, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        conditioning = CONDITIONINGS[settings.conditioning]
        self.takes_mask = conditioning.takes_mask
        self.condition = conditioning.content(class_names, embedding)
        self.conv_in = PackedConv2d(image_channels + (image_channels + 1) * self.takes_mask, base, 3, padding=1)

        def level(pairs: list[tuple[int, int]], index: int) -> UNetLevel:
            attended = index in settings.attention_levels
            return UNetLevel(pairs, settings.dropout, _heads(settings, compat, widths[index]) if attended else None, norm)

        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        skips, current, last = [base], base, len(widths) - 1
        for i, width in enumerate(widths):
            pairs = [(current if j == 0 else width, width) for j in range(settings.blocks_per_level)]
            self.down.append(level(pairs, i))
            skips += [width] * settings.blocks_per_level + ([width] if i < last else [])
            self.downsample.append(Downsample(width, compat.corner_padding) if i < last else nn.Identity())
            current = width

        self.mid_block1 = ResidualBlock(current, current, settings.dropout, norm)
        heads = _heads(settings, compat, current)
        self.mid_attention = Attention(current, heads, norm) if settings.middle_attention else nn.Identity()
        self.mid_block2 = ResidualBlock(current, current, settings.dropout, norm)

        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            pairs = []
            for _ in range(settings.blocks_per_level + 1):
                pairs.append((current + skips.pop(), width))
                current = width
            self.up.append(level(pairs, i))
            self.upsample.append(Upsample(width) if i > 0 else nn.Identity())

        self.norm, self.conv_out = norm(current), zero_init(PackedConv2d(current, self.outputs, 3, padding=1))
        # One linear layer for the shifts of all blocks, in the order of `forward`: many small ones cost more than they compute.
        self.widths = [block.conv1.out_channels for block in self.modules() if isinstance(block, ResidualBlock)]
        self.embed = nn.Linear(embedding, sum(self.widths))

    @property
    def takes_labels(self) -> bool:
        """Whether labels have any effect."""
        return not isinstance(self.condition, NoConditioning)

    @property
    def takes_text(self) -> bool:
        """Whether labels may be captions."""
        return isinstance(self.condition, TextEncoder)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        embedding = F.silu(self.condition(self.time(time_embedding(t, self.base, self.frequency_shift).to(x.dtype)), labels))
        shifts = iter(self.embed(embedding)[:, :, None, None].split(self.widths, dim=1))
        if self.takes_mask:
            if known is None:
                known = x.new_zeros(len(x), x.shape[1] + 1, *x.shape[2:])
            x = torch.cat([x, known], dim=1)
        h = self.conv_in(x)
        skips = [h]
        for i, level in enumerate(self.down):
            for block, attention in zip(level.blocks, level.attentions, strict=True):
                h = attention(block(h, next(shifts)))
                skips.append(h)
            if i < len(self.down) - 1:
                h = self.downsample[i](h)
                skips.append(h)
        h = self.mid_block1(h, next(shifts))
        h = self.mid_block2(self.mid_attention(h), next(shifts))
        for i, level in enumerate(self.up):
            for block, attention in zip(level.blocks, level.attentions, strict=True):
                h = attention(block(torch.cat([h, skips.pop()], dim=1), next(shifts)))
            if i < len(self.up) - 1:
                h = self.upsample[i](h)
        return self.conv_out(silu(self.norm(h)))


def zero_init(layer: nn.Conv2d) -> nn.Conv2d:
    """Zero weights and bias: every residual branch starts as the identity (Ho et al. 2020's code)."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _heads(settings: UNetSettings, compat: CompatOptions, width: int) -> int:
    return width // compat.head_channels if compat.head_channels else settings.heads


def check_sizes(settings: UNetSettings, shape: tuple[int, int, int], compat: CompatOptions) -> None:
    """Raises InputError if the image (H, W, C), the attention or the group norm does not fit the depth and the widths."""
    levels = len(settings.channel_mults)
    factor = 2 ** (levels - 1)
    if shape[0] % factor or shape[1] % factor:
        raise InputError(
            f"{levels} levels halve the image {levels - 1} times, so its sides must be "
            f"multiples of {factor}, but they are {shape[0]}x{shape[1]}; use fewer levels or another prepare_data.image_size",
            key="model.channel_mults",
            where="params.yaml",
        )
    for level in settings.attention_levels:
        if level >= levels:
            raise InputError(
                f"{level} does not exist; the levels are 0 to {levels - 1}", key="model.attention_levels", where="params.yaml"
            )
    attended = [settings.channel_mults[i] for i in settings.attention_levels]
    attended += [settings.channel_mults[-1]] * settings.middle_attention
    name, parts = ("head_channels", compat.head_channels) if compat.head_channels else ("model.heads", settings.heads)
    for mult in attended:
        if settings.channels * mult % parts:
            raise InputError(
                f"{parts} does not divide the {settings.channels * mult} channels of a level with attention",
                key=name,
                where="params.yaml",
            )
    if compat.norm_groups and settings.channels % compat.norm_groups:
        raise InputError(
            f"{compat.norm_groups} does not divide the {settings.channels} channels of the first level", key="norm_groups"
        )
