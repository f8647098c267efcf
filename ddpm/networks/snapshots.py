"""Snapshots of the tracked averages on disk, and the average of any width that is rebuilt from them.

models/ddpm/snapshots/step_0005000.safetensors     both tracks of a step in one file, so that none is there without the other
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from ddpm.files import InputError
from ddpm.networks.posthoc import TOLERANCE, WIDTHS, from_snapshots, reach
from ddpm.weights import read_weights, save_weights

SNAPSHOTS = "snapshots"


def snapshot_file(folder: Path, step: int) -> Path:
    """The file of a step's snapshot in a model folder."""
    return folder / SNAPSHOTS / f"step_{step:07d}.safetensors"


def list_snapshots(folder: Path) -> list[int]:
    """The steps, ascending, whose snapshots a model folder holds; none if it has no such folder."""
    found = (re.fullmatch(r"step_(\d+)\.safetensors", path.name) for path in (folder / SNAPSHOTS).glob("*"))
    return sorted(int(match[1]) for match in found if match)


def save_snapshot(folder: Path, step: int, tracks: dict[float, dict[str, Tensor]]) -> None:
    """Write the averages of a step, {width: {name: tensor}} with the widths WIDTHS, into a model folder, atomically."""
    if set(tracks) != set(WIDTHS):
        raise ValueError(f"a snapshot holds the widths {WIDTHS}, not {tuple(tracks)}")
    save_weights(
        snapshot_file(folder, step), {_key(width, name): tracks[width][name] for width in WIDTHS for name in tracks[width]}
    )


def rebuild(folder: Path, width: float) -> dict[str, Tensor]:
    """The averaged weights of `width` at the last snapshot of a model folder, on the CPU, with the types that were saved.

    Raises InputError if there are no snapshots, if one is damaged or unlike the others, and if they do not reach this width.
    """
    steps = list_snapshots(folder)
    if not steps:
        raise InputError(f"{folder / SNAPSHOTS}: holds no snapshots; set train.snapshots above 0 and run `dvc repro train`")
    shares, residual = from_snapshots(steps, width)
    if residual > TOLERANCE:
        narrowest, widest = reach(steps)
        raise InputError(
            f"{folder / SNAPSHOTS}: gives no EMA of width {width:g}, only of {narrowest:g} to {widest:g} (residual "
            f"{residual:.0%} with {len(steps)} snapshots); choose one of these, or raise train.snapshots"
        )
    total: dict[str, Tensor] = {}
    first = snapshot_file(folder, steps[0])
    for step, row in zip(steps, shares.tolist(), strict=True):
        path, tracks = snapshot_file(folder, step), read_snapshot(folder, step)
        if not total:
            total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in tracks[WIDTHS[0]].items()}
        for width, share in zip(WIDTHS, row, strict=True):
            if _shapes(tracks[width]) != _shapes(total):
                raise InputError(f"{path}: holds other weights than {first.name}; make it again with `dvc repro -f train`")
            for name, value in tracks[width].items():
                # Summed in float64: the shares have both signs and can be a hundred times their sum.
                total[name].add_(value, alpha=share)
    return {name: value.to(tracks[WIDTHS[0]][name].dtype) for name, value in total.items()}


def _key(width: float, name: str) -> str:
    return f"{width:g}/{name}"


def read_snapshot(folder: Path, step: int) -> dict[float, dict[str, Tensor]]:
    """The averages of a step, {width: {name: tensor}}; those that the file does not hold are empty.

    Raises InputError if it is missing or damaged.
    """
    found = read_weights(snapshot_file(folder, step), "train")
    starts = {width: _key(width, "") for width in WIDTHS}
    return {
        width: {key.removeprefix(start): value for key, value in found.items() if key.startswith(start)}
        for width, start in starts.items()
    }


def _shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}
