"""Where the tensors of diffusers' UNet2DModel lie in our U-Net: both compute the same, under other names.

Each of its tensors is one of ours, or some rows of one: we keep queries, keys and values in one layer, and the shifts of all
blocks in another. So one table serves both directions.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddpm.core.files import InputError
from ddpm.networks.layers import Attention, ResidualBlock
from ddpm.networks.unet import UNet

LINEAR_IN = "time_embedding.linear_1"
LINEAR_OUT = "time_embedding.linear_2"
FIRST, LAST = "conv_in", "conv_out"
CLASSES = "class_embedding.weight"
# Of the attention's layers, as diffusers called them before version 0.15.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_BLOCK = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "skip"}


class Part(NamedTuple):
    """Rows first .. first + rows - 1 of one of our tensors; flat: they are without the 1x1 of our convolution there."""

    name: str
    first: int
    rows: int
    flat: bool = False


def parts(network: UNet) -> dict[str, Part]:
    """By the names of UNet2DModel, where each of its tensors lies in ours; what the network is told of an image is left out."""
    sizes = {name: len(value) for name, value in network.named_parameters()}
    found = {}

    def add(theirs: str, ours: str, first: int = 0, rows: int | None = None, flat: bool = False) -> None:
        for kind in ("weight", "bias"):
            whole = sizes[f"{ours}.{kind}"]
            found[f"{theirs}.{kind}"] = Part(f"{ours}.{kind}", first, whole if rows is None else rows, flat and kind == "weight")

    for theirs, ours in _whole_layers(network):
        add(theirs, ours)
    shift = 0
    for theirs, ours, block in _members(network, ResidualBlock):
        add(f"{theirs}.time_emb_proj", "embed", shift, block.conv1.out_channels)
        shift += block.conv1.out_channels
        for there, here in _BLOCK.items():
            if not isinstance(getattr(block, here), nn.Identity):
                add(f"{theirs}.{there}", f"{ours}.{here}")
    for theirs, ours, attention in _members(network, Attention):
        width = attention.out.out_channels
        add(f"{theirs}.group_norm", f"{ours}.norm")
        add(f"{theirs}.to_out.0", f"{ours}.out", flat=True)
        for k, name in enumerate(("to_q", "to_k", "to_v")):
            add(f"{theirs}.{name}", f"{ours}.qkv", k * width, width, flat=True)
    return found


def _whole_layers(network: UNet) -> Iterator[tuple[str, str]]:
    """Names, theirs and ours, of the layers outside of blocks."""
    yield from {FIRST: "conv_in", LINEAR_IN: "time.0", LINEAR_OUT: "time.2", "conv_norm_out": "norm", LAST: "conv_out"}.items()
    for i in range(len(network.down) - 1):
        yield f"down_blocks.{i}.downsamplers.0.conv", f"downsample.{i}"
        yield f"up_blocks.{i}.upsamplers.0.conv", f"upsample.{i}"


def _members(network: UNet, kind: type[nn.Module]) -> Iterator[tuple[str, str, nn.Module]]:
    """Names, theirs and ours, of the blocks or attentions, in the order of the forward pass, which is that of the shifts."""
    here, there = ("blocks", "resnets") if kind is ResidualBlock else ("attentions", "attentions")

    def side(name: str) -> Iterator[tuple[str, str, nn.Module]]:
        for i, level in enumerate(getattr(network, name)):
            for j, member in enumerate(getattr(level, here)):
                yield f"{name}_blocks.{i}.{there}.{j}", f"{name}.{i}.{here}.{j}", member

    middle = ("mid_block1", "mid_block2") if kind is ResidualBlock else ("mid_attention",)
    between = ((f"mid_block.{there}.{j}", name, getattr(network, name)) for j, name in enumerate(middle))
    for theirs, ours, member in (*side("down"), *between, *side("up")):
        if isinstance(member, kind):
            yield theirs, ours, member


def to_theirs(network: UNet) -> dict[str, Tensor]:
    """The tensors of the UNet2DModel that computes as the network does, copied to the CPU."""
    ours, theirs = network.state_dict(), {}
    for name, part in parts(network).items():
        rows = ours[part.name][part.first : part.first + part.rows]
        theirs[name] = (rows.flatten(1) if part.flat else rows).detach().cpu().clone(memory_format=torch.contiguous_format)
    return theirs


def to_ours(theirs: Mapping[str, Tensor], network: UNet) -> dict[str, Tensor]:
    """The state of our network with the tensors of a UNet2DModel, old names of its attention included; of what it is told of an
    image, its own. Raises InputError for tensors that are missing, too many, or of another shape."""
    ours = {name: value.clone() for name, value in network.state_dict().items()}
    given, expected = _renamed(theirs), parts(network)
    odd = sorted(given.keys() ^ expected.keys())
    if odd:
        state = "is missing" if odd[0] in expected else "belongs to no part of this network"
        raise InputError(f"{odd[0]} {state}, by its config ({len(odd)} such tensors)")
    for name, part in expected.items():
        rows = ours[part.name][part.first : part.first + part.rows]
        flat = tuple(rows.shape[:2]) if part.flat else ()
        if tuple(given[name].shape) not in (tuple(rows.shape), flat):
            raise InputError(f"shape {tuple(given[name].shape)} must be {flat or tuple(rows.shape)}, by its config", key=name)
        rows.copy_(given[name].reshape(rows.shape))
    return ours


def _renamed(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the attention's names of today."""
    found = {}
    for name, value in theirs.items():
        parents, layer, kind = name.rsplit(".", 2) if name.count(".") > 1 else ("", "", "")
        old = layer in _OLD_NAMES and ".attentions." in parents
        found[f"{parents}.{_OLD_NAMES[layer]}.{kind}" if old else name] = value
    return found
