"""Maps the tensors of diffusers' UNet2DModel to those of our U-Net, which computes the same.

Each tensor of diffusers is one of ours or some rows of one: our attention keeps queries, keys and values in one layer, and our
U-Net keeps the time projections of all blocks in one layer. So one table serves both directions.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddpm.core.files import InputError
from ddpm.networks.layers import Attention, ResidualBlock
from ddpm.networks.unet import UNet

LINEAR_IN, LINEAR_OUT = "time_embedding.linear_1", "time_embedding.linear_2"
CLASSES = "class_embedding.weight"
# The attention layers' names before version 0.15 of diffusers.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class TensorRows(NamedTuple):
    """Rows of one of our tensors.

    name: the name of the tensor.
    first, rows: the first row and the number of rows.
    flat: whether diffusers has a linear layer where we have a 1x1 convolution.
    """

    name: str
    first: int
    rows: int
    flat: bool = False


def tensor_map(network: UNet) -> dict[str, TensorRows]:
    """Returns the place of each tensor of UNet2DModel in our network; the class embedding is not in it."""
    sizes = {name: len(value) for name, value in network.named_parameters()}
    places = {}

    def add(theirs: str, ours: str, first: int = 0, rows: int | None = None, flat: bool = False) -> None:
        for kind in ("weight", "bias"):
            count = sizes[f"{ours}.{kind}"] if rows is None else rows
            places[f"{theirs}.{kind}"] = TensorRows(f"{ours}.{kind}", first, count, flat and kind == "weight")

    for name in ("conv_in", "conv_out"):
        add(name, name)
    for theirs, ours in ((LINEAR_IN, "time.0"), (LINEAR_OUT, "time.2"), ("conv_norm_out", "norm")):
        add(theirs, ours)
    for i in range(len(network.down) - 1):
        add(f"down_blocks.{i}.downsamplers.0.conv", f"downsample.{i}")
        add(f"up_blocks.{i}.upsamplers.0.conv", f"upsample.{i}")
    first = 0
    for theirs, ours, block in _members(network, ResidualBlock):
        add(f"{theirs}.time_emb_proj", "embed", first, block.conv1.out_channels)
        first += block.conv1.out_channels
        for name in ("norm1", "conv1", "norm2", "conv2"):
            add(f"{theirs}.{name}", f"{ours}.{name}")
        if not isinstance(block.skip, nn.Identity):
            add(f"{theirs}.conv_shortcut", f"{ours}.skip")
    for theirs, ours, attention in _members(network, Attention):
        width = attention.out.out_channels
        add(f"{theirs}.group_norm", f"{ours}.norm")
        add(f"{theirs}.to_out.0", f"{ours}.out", flat=True)
        for k, name in enumerate(("to_q", "to_k", "to_v")):
            add(f"{theirs}.{name}", f"{ours}.qkv", k * width, width, flat=True)
    return places


def _members(network: UNet, kind: type[nn.Module]) -> Iterator[tuple[str, str, nn.Module]]:
    """Yields (their name, our name, module) for all blocks or attentions in the order of the forward pass."""
    ours, theirs = ("blocks", "resnets") if kind is ResidualBlock else ("attentions", "attentions")

    def side(name: str) -> Iterator[tuple[str, str, nn.Module]]:
        for i, level in enumerate(getattr(network, name)):
            for j, member in enumerate(getattr(level, ours)):
                yield f"{name}_blocks.{i}.{theirs}.{j}", f"{name}.{i}.{ours}.{j}", member

    middle = ("mid_block1", "mid_block2") if kind is ResidualBlock else ("mid_attention",)
    between = ((f"mid_block.{theirs}.{j}", name, getattr(network, name)) for j, name in enumerate(middle))
    yield from (found for found in (*side("down"), *between, *side("up")) if isinstance(found[2], kind))


def to_diffusers(network: UNet) -> dict[str, Tensor]:
    """Returns the state dict of the UNet2DModel that computes as the network does, copied to the CPU."""
    ours, theirs = network.state_dict(), {}
    for name, place in tensor_map(network).items():
        rows = ours[place.name][place.first : place.first + place.rows]
        theirs[name] = (rows.flatten(1) if place.flat else rows).detach().cpu().clone(memory_format=torch.contiguous_format)
    return theirs


def from_diffusers(theirs: Mapping[str, Tensor], network: UNet) -> dict[str, Tensor]:
    """Returns the state dict of our network, which may be on the meta device, with the tensors of a UNet2DModel.

    A class embedding keeps its place, without values. Accepts the old names of attention layers. Raises InputError for tensors
    that are missing, unknown, or of another shape.
    """
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    theirs, expected = {_current_name(name): value for name, value in theirs.items()}, tensor_map(network)
    odd = sorted(theirs.keys() ^ expected.keys())
    if odd:
        problem = "is missing" if odd[0] in expected else "is not a tensor of this network"
        raise InputError(f"{problem}, according to config.json ({len(odd)} such tensors)", key=odd[0])
    for name, place in expected.items():
        shape = (place.rows, *shapes[place.name][1:])
        flat = shape[:2] if place.flat else shape
        if tuple(theirs[name].shape) not in (shape, flat):
            raise InputError(f"shape {tuple(theirs[name].shape)} must be {flat}, according to config.json", key=name)
    ours = {name: torch.empty(shape) for name, shape in shapes.items()}
    for name, place in expected.items():
        rows = ours[place.name][place.first : place.first + place.rows]
        rows.copy_(theirs[name].reshape(rows.shape))
    return ours


def _current_name(name: str) -> str:
    """Returns the name in current versions of diffusers."""
    parents, layer, kind = name.rsplit(".", 2) if name.count(".") > 1 else ("", "", "")
    return f"{parents}.{_OLD_NAMES[layer]}.{kind}" if layer in _OLD_NAMES and ".attentions." in parents else name
