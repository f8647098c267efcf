"""Writes the config of diffusers' UNet2DModel for our U-Net, and reads it as settings of our U-Net."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, ConfigDict, Field

from ddpm.core.files import InputError
from ddpm.core.limits import MAX_SIDE
from ddpm.core.params import Section, lookup, make
from ddpm.networks.layers import norm_groups
from ddpm.networks.unet import CompatOptions, Size, UNetSettings

CLASS = "UNet2DModel"
Side = Annotated[Size, Field(le=MAX_SIDE)]
DownBlock, UpBlock = Literal["DownBlock2D", "AttnDownBlock2D"], Literal["UpBlock2D", "AttnUpBlock2D"]


def _both_sides(size: Any) -> Any:
    return [size, size] if type(size) is int else size


class UNet2D(Section):
    """The values of the config that our U-Net supports, with the defaults of diffusers for keys that older files lack."""

    model_config = ConfigDict(validate_default=True)

    sample_size: Annotated[list[Side] | None, Field(min_length=2, max_length=2), BeforeValidator(_both_sides)] = None
    in_channels: Size = 3
    out_channels: Size = 3
    center_input_sample: Literal[False] = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: Size | None = None
    freq_shift: Literal[0, 1] = 0
    flip_sin_to_cos: bool = True
    down_block_types: list[DownBlock] = Field(["DownBlock2D"] + 3 * ["AttnDownBlock2D"])
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: list[UpBlock] = Field(3 * ["AttnUpBlock2D"] + ["UpBlock2D"])
    block_out_channels: list[Size] = Field([224, 448, 672, 896], min_length=1)
    layers_per_block: Size = 2
    mid_block_scale_factor: Annotated[float, Field(ge=1, le=1)] = 1
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Literal["conv"] = "conv"
    upsample_type: Literal["conv"] = "conv"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    act_fn: Literal["silu", "swish"] = "silu"
    attention_head_dim: Size | None = 8
    norm_num_groups: Size = 32
    attn_norm_num_groups: Size | None = None
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-5
    resnet_time_scale_shift: Literal["default"] = "default"
    add_attention: bool = True
    class_embed_type: Literal[None] = None
    num_class_embeds: Size | None = None
    num_train_timesteps: Size | None = None


class UNetInfo(NamedTuple):
    """A UNet2DModel as a U-Net of ours.

    settings, compat: the settings of the U-Net.
    image: shape (H, W, C) of the images.
    outputs: channels of the output.
    classes: rows of the class embedding, or None.
    cosines_first: whether the time embedding begins with the cosines.
    """

    settings: UNetSettings
    compat: CompatOptions
    image: tuple[int, int, int]
    outputs: int
    classes: int | None
    cosines_first: bool


def write_config(
    settings: UNetSettings, compat: CompatOptions, image: tuple[int, int, int], outputs: int, classes: int | None
) -> dict[str, Any]:
    """Returns the config of the UNet2DModel that computes the same.

    image: shape (H, W, C) of the images. outputs: channels of the output.
    classes: rows of the class embedding, the last of which is "no class", or None.
    Raises InputError for settings that UNet2DModel does not have.
    """
    if settings.channels < 4:
        raise InputError(f"{settings.channels} must be at least 4 for the time embedding of diffusers", key="model.channels")
    levels = range(len(settings.channel_mults))
    attended = [i in settings.attention_levels for i in levels]
    height, width, channels = image
    config = UNet2D.model_construct(
        sample_size=height if height == width else [height, width],
        in_channels=channels,
        out_channels=outputs,
        time_embedding_dim=settings.time_embedding,
        freq_shift=compat.frequency_shift,
        flip_sin_to_cos=False,
        down_block_types=["AttnDownBlock2D" if here else "DownBlock2D" for here in attended],
        up_block_types=["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attended)],
        block_out_channels=_widths(settings),
        layers_per_block=settings.blocks_per_level,
        downsample_padding=0 if compat.corner_padding else 1,
        dropout=settings.dropout,
        attention_head_dim=_head_channels(settings, compat),
        norm_num_groups=compat.norm_groups or norm_groups(settings.channels),
        norm_eps=compat.norm_eps,
        add_attention=settings.middle_attention,
        num_class_embeds=classes,
    )
    return {"_class_name": CLASS, **config.model_dump(warnings=False)}


def _widths(settings: UNetSettings) -> list[int]:
    return [settings.channels * mult for mult in settings.channel_mults]


def _attended(settings: UNetSettings) -> set[int]:
    """Returns the numbers of channels of the levels with attention."""
    widths = _widths(settings)
    return {widths[i] for i in settings.attention_levels} | ({widths[-1]} if settings.middle_attention else set())


def _head_channels(settings: UNetSettings, compat: CompatOptions) -> int | None:
    """Returns the channels of an attention head, the same at all levels; None is one head."""
    attended = _attended(settings)
    if compat.head_channels or settings.heads == 1 or not attended:
        return compat.head_channels
    if len(attended) > 1:
        raise InputError(
            f"{settings.heads} heads at levels of different widths ({', '.join(map(str, sorted(attended)))} channels) cannot be "
            "exported, since all heads of diffusers have the same width; train with heads: 1, or attention at one width",
            key="model.heads",
        )
    return attended.pop() // settings.heads


def read_config(config: dict[str, Any], size: int | None = None) -> UNetInfo:
    """Returns the UNet2DModel of a config as a U-Net of ours. size: the side of the images, for a config without sample_size.

    Raises InputError, whose key is the entry, for an invalid config and for what our U-Net does not support.
    """
    lookup({CLASS: None}, config.get("_class_name", CLASS), "_class_name")
    theirs = make(UNet2D, **{key: value for key, value in config.items() if not key.startswith("_")})
    settings = make(
        UNetSettings,
        channels=theirs.block_out_channels[0],
        channel_mults=_mults(theirs.block_out_channels),
        blocks_per_level=theirs.layers_per_block,
        attention_levels=_attention_levels(theirs),
        middle_attention=theirs.add_attention,
        heads=1,
        time_embedding=theirs.time_embedding_dim or "auto",
        dropout=theirs.dropout,
        conditioning="none" if theirs.num_class_embeds is None else "class",
    )
    if not theirs.sample_size and not size:
        raise InputError("is missing; give the side of the images by --size", key="sample_size")
    sides = theirs.sample_size or [size, size]
    if theirs.out_channels not in (theirs.in_channels, 2 * theirs.in_channels):
        raise InputError(f"{theirs.out_channels} must be in_channels ({theirs.in_channels}), or twice that", key="out_channels")
    return UNetInfo(
        *_with_heads(settings, theirs),
        image=(*sides, theirs.in_channels),
        outputs=theirs.out_channels,
        classes=theirs.num_class_embeds,
        cosines_first=theirs.flip_sin_to_cos,
    )


def _mults(widths: Sequence[int]) -> list[int]:
    for width in widths:
        if width % widths[0]:
            raise InputError(f"{width} must be a multiple of the first, {widths[0]}", key="block_out_channels")
    return [width // widths[0] for width in widths]


def _attention_levels(theirs: UNet2D) -> list[int]:
    down, up = ([name.startswith("Attn") for name in names] for names in (theirs.down_block_types, theirs.up_block_types))
    if not len(down) == len(up) == len(theirs.block_out_channels):
        raise InputError(
            f"has {len(down)} entries; block_out_channels has {len(theirs.block_out_channels)}", key="down_block_types"
        )
    if down != up[::-1]:
        raise InputError(
            f"attention must be at the levels of down_block_types ({', '.join(theirs.down_block_types)}), in reverse order",
            key="up_block_types",
        )
    return [i for i, attended in enumerate(down) if attended]


def _with_heads(settings: UNetSettings, theirs: UNet2D) -> tuple[UNetSettings, CompatOptions]:
    """Returns the settings with their number of heads, and the options that they do not have."""
    attended, head = _attended(settings), theirs.attention_head_dim
    if attended and theirs.attn_norm_num_groups not in (None, theirs.norm_num_groups):
        raise InputError(
            f"{theirs.attn_norm_num_groups} must equal norm_num_groups, {theirs.norm_num_groups}", key="attn_norm_num_groups"
        )
    for width in attended:
        if head and width % head:
            raise InputError(f"{head} does not divide the {width} channels of a level with attention", key="attention_head_dim")
    if len(attended) == 1 and head:
        settings = settings.model_copy(update={"heads": attended.pop() // head})
        head = None
    compat = make(
        CompatOptions,
        norm_groups=None if theirs.norm_num_groups == norm_groups(settings.channels) else theirs.norm_num_groups,
        norm_eps=theirs.norm_eps,
        corner_padding=theirs.downsample_padding == 0,
        head_channels=head if attended else None,
        frequency_shift=theirs.freq_shift,
    )
    return settings, compat
