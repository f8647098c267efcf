"""The U-Net of DDPM (Ho et al. 2020, app. B), with every size a setting."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ddpm.core.files import InputError
from ddpm.core.params import OneOf, OrWord, Section
from ddpm.networks.conditioning import AUGMENTATION_PARAMETERS, CONDITIONINGS
from ddpm.networks.layers import (
    Attention,
    Downsample,
    PackedConv2d,
    ResidualBlock,
    UNetLevel,
    Upsample,
    norm_groups,
    silu,
    time_embedding,
    zero_init,
)

Size = Annotated[int, Field(ge=1)]


class UNetSettings(Section):
    """The `model` section of type `unet`; params.yaml explains each entry."""

    type: Literal["unet"] = "unet"
    channels: Annotated[int, Field(ge=2, le=8192, multiple_of=2)]
    channel_mults: Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1, max_length=12)]
    blocks_per_level: Annotated[int, Field(ge=1, le=64)]
    attention_levels: Annotated[list[Annotated[int, Field(ge=0, le=11)]], Field(max_length=12)]
    middle_attention: bool
    heads: Annotated[int, Field(ge=1, le=8192)]
    time_embedding: Annotated[Annotated[int, Field(ge=1, le=2**16)] | None, OrWord("auto")]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    conditioning: Annotated[str, OneOf(CONDITIONINGS)]


class CompatOptions(Section):
    """The options of imported networks that params.yaml does not offer.

    norm_groups: groups of every group norm; None is `layers.norm_groups`.
    norm_eps: added to the variance in every group norm.
    corner_padding: pad at the right and the bottom only where the image is halved (TensorFlow, so Ho et al. 2020).
    head_channels: channels of an attention head; replaces the number of heads.
    frequency_shift: `shift` of `time_embedding`.
    """

    norm_groups: Size | None = None
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    corner_padding: bool = False
    head_channels: Size | None = None
    frequency_shift: Literal[0, 1] = 1


DEFAULTS = CompatOptions()


class UNet(nn.Module):
    """Predicts the target of the chosen parameterization from noisy images.

    It meets the contract of `registry.Network`. H and W must be divisible by 2 ** (levels - 1). The output starts at zero.

    shape: (H, W, C) of the images. outputs: channels of the output; C by default. augmented: whether it takes the
    parameters of an augmentation. Raises InputError for sizes that do not fit.
    """

    def __init__(
        self,
        settings: UNetSettings,
        shape: tuple[int, int, int],
        class_names: Sequence[str],
        outputs: int | None = None,
        compat: CompatOptions = DEFAULTS,
        augmented: bool = False,
    ):
        super().__init__()
        check_sizes(settings, shape, compat)
        image_channels, self.outputs = shape[2], outputs or shape[2]
        widths = [settings.channels * mult for mult in settings.channel_mults]
        base, embedding = settings.channels, settings.time_embedding or 4 * settings.channels
        norm = partial(nn.GroupNorm, compat.norm_groups or norm_groups(base), eps=compat.norm_eps)
        self.base, self.frequency_shift = base, compat.frequency_shift
        self.time = nn.Sequential(nn.Linear(base, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        embed_labels, self.takes_mask = CONDITIONINGS[settings.conditioning]
        self.condition = embed_labels(class_names, embedding)
        self.takes_labels, self.takes_text = self.condition.takes_labels, self.condition.takes_text
        self.conv_in = PackedConv2d(image_channels + (image_channels + 1) * self.takes_mask, base, 3, padding=1)

        def level(pairs: list[tuple[int, int]], index: int) -> UNetLevel:
            heads = _heads(settings, compat, widths[index]) if index in settings.attention_levels else None
            return UNetLevel(pairs, settings.dropout, heads, norm)

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
        # One linear layer gives the shifts of all blocks, in the order of `forward`: one large product is faster than many small.
        self.widths = [block.conv1.out_channels for block in self.modules() if isinstance(block, ResidualBlock)]
        self.embed = nn.Linear(embedding, sum(self.widths))
        # Without a bias, so that zeros and None are equal. Made last, so that all other layers start as without it.
        self.augment = nn.Linear(AUGMENTATION_PARAMETERS, embedding, bias=False) if augmented else None

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        known: Tensor | None = None,
        augmentation: Tensor | None = None,
    ) -> Tensor:
        """Returns the prediction (B, outputs, H, W) for x (B, C, H, W) at t (B,); see `registry.Network`."""
        embedding = self.condition(self.time(time_embedding(t, self.base, self.frequency_shift).to(x.dtype)), labels)
        if augmentation is not None:
            embedding = embedding + self.augment(augmentation.to(x.dtype))
        shifts = iter(self.embed(F.silu(embedding))[:, :, None, None].split(self.widths, dim=1))
        if self.takes_mask:
            x = torch.cat([x, x.new_zeros(len(x), x.shape[1] + 1, *x.shape[2:]) if known is None else known], dim=1)
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


def _heads(settings: UNetSettings, compat: CompatOptions, width: int) -> int:
    return width // compat.head_channels if compat.head_channels else settings.heads


def check_sizes(settings: UNetSettings, shape: tuple[int, int, int], compat: CompatOptions) -> None:
    """Raises InputError if the image (H, W, C), the attention or the group norm does not fit the levels and their widths."""

    def refuse(key: str, message: str) -> None:
        raise InputError(message, key=key, where="params.yaml" if key.startswith("model.") else "")

    levels, channels = len(settings.channel_mults), settings.channels
    factor = 2 ** (levels - 1)
    if shape[0] % factor or shape[1] % factor:
        refuse(
            "model.channel_mults",
            f"{levels} levels halve the image {levels - 1} times, so its sides must be multiples of {factor}, but they are "
            f"{shape[0]}x{shape[1]}; use fewer levels or another prepare_data.image_size",
        )
    for level in settings.attention_levels:
        if level >= levels:
            refuse("model.attention_levels", f"{level} does not exist; the levels are 0 to {levels - 1}")
    name, parts = ("head_channels", compat.head_channels) if compat.head_channels else ("model.heads", settings.heads)
    for level in [*settings.attention_levels, *[-1] * settings.middle_attention]:
        width = channels * settings.channel_mults[level]
        if width % parts:
            refuse(name, f"{parts} does not divide the {width} channels of a level with attention")
    if compat.norm_groups and channels % compat.norm_groups:
        refuse("norm_groups", f"{compat.norm_groups} does not divide the {channels} channels of the first level")
