"""The config of diffusers' UNet2DModel: written for a network of ours, and read as the settings of one."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, ConfigDict, Field

from ddpm.core.files import InputError
from ddpm.core.params import Section, make
from ddpm.networks.layers import norm_groups
from ddpm.networks.unet import CompatOptions, Size, UNetSettings

CLASS = "UNet2DModel"
Plain, Attended = Literal["DownBlock2D", "AttnDownBlock2D"], Literal["UpBlock2D", "AttnUpBlock2D"]
ATTENDED = {"AttnDownBlock2D": True, "AttnUpBlock2D": True, "DownBlock2D": False, "UpBlock2D": False}


def _both_sides(size: Any) -> Any:
    return [size, size] if type(size) is int else size


class UNet2D(Section):
    """The config as far as our network can do it, with the defaults of diffusers, which older files rely on."""

    model_config = ConfigDict(validate_default=True)

    sample_size: Annotated[list[Size] | None, Field(min_length=2, max_length=2), BeforeValidator(_both_sides)] = None
    in_channels: Size = 3
    out_channels: Size = 3
    center_input_sample: Literal[False] = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: Size | None = None
    freq_shift: Literal[0, 1] = 0
    flip_sin_to_cos: bool = True
    down_block_types: list[Plain] = Field(["DownBlock2D"] + 3 * ["AttnDownBlock2D"])
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: list[Attended] = Field(3 * ["AttnUpBlock2D"] + ["UpBlock2D"])
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
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    resnet_time_scale_shift: Literal["default"] = "default"
    add_attention: bool = True
    class_embed_type: Literal[None] = None
    num_class_embeds: Size | None = None
    num_train_timesteps: Size | None = None


class Shape(NamedTuple):
    """A network of ours: its settings, in what it differs from those trained here, the images (H, W, C), its outputs, how many
    classes it is told or None, and whether its time embedding begins with the cosines."""

    settings: UNetSettings
    details: CompatOptions
    image: tuple[int, int, int]
    outputs: int
    classes: int | None
    cosines_first: bool


def write_config(
    settings: UNetSettings, details: CompatOptions, image: tuple[int, int, int], outputs: int, classes: int | None
) -> dict[str, Any]:
    """The config of the UNet2DModel that computes as a network of ours, for images (H, W, C) and so many outputs.

    classes: rows of its table of classes, "no class" being the last, or None. Raises InputError for what it cannot do.
    """
    if settings.channels < 4:
        raise InputError(
            f"{settings.channels} is too few for the time embedding of diffusers; it needs 4 or more", key="model.channels"
        )
    levels = range(len(settings.channel_mults))
    attended = [i in settings.attention_levels for i in levels]
    height, width, channels = image
    return {
        "_class_name": CLASS,
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": outputs,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "time_embedding_dim": settings.time_embedding,
        "freq_shift": details.frequency_shift,
        "flip_sin_to_cos": False,
        "down_block_types": ["AttnDownBlock2D" if here else "DownBlock2D" for here in attended],
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attended)],
        "block_out_channels": _widths(settings),
        "layers_per_block": settings.blocks_per_level,
        "mid_block_scale_factor": 1,
        "downsample_padding": 0 if details.corner_padding else 1,
        "downsample_type": "conv",
        "upsample_type": "conv",
        "dropout": settings.dropout,
        "act_fn": "silu",
        "attention_head_dim": _head_channels(settings, details),
        "norm_num_groups": details.norm_groups or norm_groups(settings.channels),
        "attn_norm_num_groups": None,
        "norm_eps": details.norm_eps,
        "resnet_time_scale_shift": "default",
        "add_attention": settings.middle_attention,
        "class_embed_type": None,
        "num_class_embeds": classes,
        "num_train_timesteps": None,
    }


def _widths(settings: UNetSettings) -> list[int]:
    return [settings.channels * mult for mult in settings.channel_mults]


def _attended(settings: UNetSettings) -> set[int]:
    """The widths at which there is attention."""
    widths = _widths(settings)
    return {widths[i] for i in settings.attention_levels} | ({widths[-1]} if settings.middle_attention else set())


def _head_channels(settings: UNetSettings, details: CompatOptions) -> int | None:
    """The width of an attention head, the same everywhere; None: that of the level, which is one head."""
    attended = _attended(settings)
    if details.head_channels or settings.heads == 1 or not attended:
        return details.head_channels
    if len(attended) > 1:
        raise InputError(
            f"{settings.heads} heads at {len(attended)} widths ({', '.join(map(str, sorted(attended)))} channels) "
            "cannot be exported, since diffusers has heads of one width; such a model needs heads: 1, or attention at one width",
            key="model.heads",
        )
    return attended.pop() // settings.heads


def read_config(config: dict[str, Any], size: int | None = None) -> Shape:
    """What a UNet2DModel is as a network of ours. size: the side of its images, where the config says none.

    Raises InputError, beginning with the key, for a config that is none, and for what our network cannot do.
    """
    name = config.get("_class_name", CLASS)
    if name != CLASS:
        raise InputError(f"{name!r} cannot be imported, only {CLASS}", key="_class_name")
    given = make(UNet2D, **{key: value for key, value in config.items() if not key.startswith("_")})
    settings = make(
        UNetSettings,
        channels=given.block_out_channels[0],
        channel_mults=_mults(given.block_out_channels),
        blocks_per_level=given.layers_per_block,
        attention_levels=_attention_levels(given),
        middle_attention=given.add_attention,
        heads=1,
        time_embedding=given.time_embedding_dim or "auto",
        dropout=given.dropout,
        conditioning="none" if given.num_class_embeds is None else "class",
    )
    if given.out_channels not in (given.in_channels, 2 * given.in_channels):
        raise InputError(f"{given.out_channels} must be in_channels ({given.in_channels}), or twice as many", key="out_channels")
    return Shape(
        *_with_heads(settings, given),
        image=(*_sides(given.sample_size, size), given.in_channels),
        outputs=given.out_channels,
        classes=given.num_class_embeds,
        cosines_first=given.flip_sin_to_cos,
    )


def _mults(widths: Sequence[int]) -> list[int]:
    for width in widths:
        if width % widths[0]:
            raise InputError(
                f"{width} is no multiple of the first, {widths[0]}, as our network needs it", key="block_out_channels"
            )
    return [width // widths[0] for width in widths]


def _attention_levels(given: UNet2D) -> list[int]:
    down, up = ([ATTENDED[name] for name in names] for names in (given.down_block_types, given.up_block_types))
    if not len(down) == len(up) == len(given.block_out_channels):
        raise InputError(
            f"{len(down)} blocks do not fit {len(given.block_out_channels)} block_out_channels", key="down_block_types"
        )
    if down != up[::-1]:
        raise InputError(
            f"attention must be where down_block_types have it ({', '.join(given.down_block_types)}), in reverse",
            key="up_block_types",
        )
    return [i for i, attended in enumerate(down) if attended]


def _with_heads(settings: UNetSettings, given: UNet2D) -> tuple[UNetSettings, CompatOptions]:
    """The settings with their heads, and what cannot be said by them."""
    attended, head = _attended(settings), given.attention_head_dim
    if attended and given.attn_norm_num_groups not in (None, given.norm_num_groups):
        raise InputError(
            f"{given.attn_norm_num_groups} must be norm_num_groups, {given.norm_num_groups}", key="attn_norm_num_groups"
        )
    for width in attended:
        if head and width % head:
            raise InputError(f"{head} does not divide the {width} channels of a level with attention", key="attention_head_dim")
    if len(attended) == 1 and head:
        settings = settings.model_copy(update={"heads": attended.pop() // head})
        head = None
    details = make(
        CompatOptions,
        norm_groups=None if given.norm_num_groups == norm_groups(settings.channels) else given.norm_num_groups,
        norm_eps=given.norm_eps,
        corner_padding=given.downsample_padding == 0,
        head_channels=head if attended else None,
        frequency_shift=given.freq_shift,
    )
    return settings, details


def _sides(sides: list[int] | None, size: int | None) -> tuple[int, int]:
    if not sides and not size:
        raise InputError("is missing, so nobody knows how large its images are; say it by --size", key="sample_size")
    return tuple(sides or [size, size])
