"""Post-hoc EMA: averaged weights of any width, rebuilt after the training from snapshots of two that were tracked in it.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2, arXiv 2312.02696), sec. 3 and
app. C. A power-function EMA at step t gives the weights of step tau the share p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1). Its
width sigma_rel is the standard deviation of that profile as a share of t, so it means the same in a short and a long training.


Snapshots of the tracked averages on disk, and the average of any width that is rebuilt from them.

models/ddpm/snapshots/step_0005000.safetensors     both tracks of a step in one file, so that none is there without the other
"""

import re
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.core.weights import read_weights, save_weights

TRACKED_SIGMA_REL = (0.05, 0.10)  # of the tracked averages: EDM2's
# Widths that can be asked for. At 1/sqrt(12) = 0.2887 the average is a plain mean over the whole training.
MIN_SIGMA_REL, MAX_SIGMA_REL = 0.005, 0.28
# The largest residual that is accepted: an error of a tenth of the noise that the average itself still has. Up to it the variance
# of that noise was right to 10 % (1 to 40 snapshots, even or crowded).
TOLERANCE = 0.1


@cache
def gamma_from_sigma_rel(width: float) -> float:
    """gamma of a width: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), solved as a cubic (EDM2, app. C).

    Raises InputError for a width below 0.005 or above 0.28.
    """
    if not MIN_SIGMA_REL <= width <= MAX_SIGMA_REL:
        raise InputError(f"EMA width: {width} must be from {MIN_SIGMA_REL} to {MAX_SIGMA_REL}")
    q = width**-2
    # 12 - q < 0 is the only change of sign in the coefficients, so one root is positive (Descartes).
    return float(np.roots([1, 7, 16 - q, 12 - q]).real.max())


def decay(width: float, step: int) -> float:
    """beta of w <- beta w + (1 - beta) weights at optimizer step 1, 2, ...: (1 - 1/step)^(gamma + 1) (EDM2, app. C).

    beta is 0 at step 1, so what w holds before it is forgotten. The share of step tau at step t is the integral of the profile
    over (tau - 1, tau].
    """
    return (1 - 1 / step) ** (gamma_from_sigma_rel(width) + 1)


def coefficients(steps: list[int], widths: list[float], step: int, width: float) -> tuple[np.ndarray, float]:
    """How to add up averages i, tracked with widths[i] until steps[i], to the one of `width` at `step`: ((N,) float64, residual).

    Least squares over the profiles (EDM2, app. C), under the condition that the coefficients sum to 1: weights that no longer
    change are then reproduced as they are, however few the snapshots. residual is the norm of the difference of profiles, as a
    share of the norm of the profile asked for: for weights that are independent noise at each step, the relative error.

    Raises InputError for a width that `gamma_from_sigma_rel` refuses.
    """
    t, gamma = np.array([*steps, step], float), np.array([gamma_from_sigma_rel(value) for value in [*widths, width]])
    # <p_i, p_j> on [0, min(t_i, t_j)], written so that no power overflows.
    shared = np.minimum.outer(t, t)
    powers = (shared / t[:, None]) ** gamma[:, None] * (shared / t) ** gamma
    products = np.multiply.outer(gamma + 1, gamma + 1) / (np.add.outer(gamma, gamma) + 1) * powers / np.maximum.outer(t, t)
    norm = np.sqrt(products.diagonal())
    products /= np.multiply.outer(norm, norm)
    gram, goal, integral = products[:-1, :-1], products[:-1, -1], norm[-1] / norm[:-1]
    # Profiles of neighbouring snapshots are nearly parallel: directions that float64 cannot tell from none are left out.
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-12 * values[-1]
    inverse = vectors[:, kept] / values[kept] @ vectors[:, kept].T
    x = inverse @ goal
    x += inverse @ integral * (1 - integral @ x) / (integral @ inverse @ integral)
    residual = np.sqrt(max(0.0, 1 - 2 * goal @ x + x @ gram @ x))
    return x * integral, float(residual)


def from_snapshots(steps: list[int], width: float) -> tuple[np.ndarray, float]:
    """(coefficients (len(steps), len(WIDTHS)), residual) of the average of `width` at the last of these snapshots' steps."""
    flat, residual = coefficients(
        np.repeat(steps, len(TRACKED_SIGMA_REL)).tolist(), [*TRACKED_SIGMA_REL] * len(steps), steps[-1], width
    )
    return flat.reshape(len(steps), len(TRACKED_SIGMA_REL)), residual


def supported_range(steps: list[int]) -> tuple[float, float]:
    """The narrowest and the widest average, rounded inwards, that snapshots of these steps give with an accepted residual."""
    grid = np.linspace(MIN_SIGMA_REL, MAX_SIGMA_REL, 56).round(3)
    found = [width for width in grid.tolist() if from_snapshots(steps, width)[1] <= TOLERANCE]
    return found[0], found[-1]


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
    if set(tracks) != set(TRACKED_SIGMA_REL):
        raise ValueError(f"a snapshot holds the widths {TRACKED_SIGMA_REL}, not {tuple(tracks)}")
    save_weights(
        snapshot_file(folder, step),
        {_key(width, name): tracks[width][name] for width in TRACKED_SIGMA_REL for name in tracks[width]},
    )


def rebuild(folder: Path, width: float) -> dict[str, Tensor]:
    """The averaged weights of `width` at the last snapshot of a model folder, on the CPU, with the types that were saved.

    Raises InputError if there are no snapshots, if one is damaged or unlike the others, and if they do not reach this width.
    """
    steps = list_snapshots(folder)
    if not steps:
        raise InputError("holds no snapshots; set train.snapshots above 0 and run `dvc repro train`", key=folder / SNAPSHOTS)
    shares, residual = from_snapshots(steps, width)
    if residual > TOLERANCE:
        narrowest, widest = supported_range(steps)
        raise InputError(
            f"gives no EMA of width {width:g}, only of {narrowest:g} to {widest:g} (residual "
            f"{residual:.0%} with {len(steps)} snapshots); choose one of these, or raise train.snapshots",
            key=folder / SNAPSHOTS,
        )
    total: dict[str, Tensor] = {}
    first = snapshot_file(folder, steps[0])
    for step, row in zip(steps, shares.tolist(), strict=True):
        path, tracks = snapshot_file(folder, step), read_snapshot(folder, step)
        if not total:
            total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in tracks[TRACKED_SIGMA_REL[0]].items()}
        for width, share in zip(TRACKED_SIGMA_REL, row, strict=True):
            if _shapes(tracks[width]) != _shapes(total):
                raise InputError(f"holds other weights than {first.name}; make it again with `dvc repro -f train`", key=path)
            for name, value in tracks[width].items():
                # Summed in float64: the shares have both signs and can be a hundred times their sum.
                total[name].add_(value, alpha=share)
    return {name: value.to(tracks[TRACKED_SIGMA_REL[0]][name].dtype) for name, value in total.items()}


def _key(width: float, name: str) -> str:
    return f"{width:g}/{name}"


def read_snapshot(folder: Path, step: int) -> dict[float, dict[str, Tensor]]:
    """The averages of a step, {width: {name: tensor}}; those that the file does not hold are empty.

    Raises InputError if it is missing or damaged.
    """
    found = read_weights(snapshot_file(folder, step), "train")
    starts = {width: _key(width, "") for width in TRACKED_SIGMA_REL}
    return {
        width: {key.removeprefix(start): value for key, value in found.items() if key.startswith(start)}
        for width, start in starts.items()
    }


def _shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}
