"""Post-hoc EMA: averaged weights of any length, reconstructed after the training (Karras et al. 2024, "EDM2", sec. 3 and app. C).

A power-function EMA at step t weights the parameters theta(tau) of step tau by the profile

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),     0 <= tau <= t.

Its length is sigma_rel, the standard deviation of p divided by t, so the same value fits a short and a long training. The
training tracks two of these EMAs and stores snapshots of both:

    models/ddpm/snapshots/step_0005000.safetensors     tensors "0.05/NAME" and "0.1/NAME"

The EMA of another sigma_rel is the linear combination of all snapshots whose profile is nearest in the least-squares sense.
"""

import re
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.core.files import InputError, remake
from ddpm.core.weights import read_weights, save_weights
from ddpm.networks.names import MAX_SIGMA_REL, MIN_SIGMA_REL, SNAPSHOTS

TRACKED_SIGMA_REL = (0.05, 0.10)  # as in EDM2
# The largest accepted residual. Up to it, the noise of the reconstructed EMA had the right variance to 10 % (1 to 40 snapshots).
TOLERANCE = 0.1


@cache
def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """Returns the gamma > 0 with sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (EDM2, app. C).

    Raises InputError for a value below 0.005 or above 0.28.
    """
    if not MIN_SIGMA_REL <= sigma_rel <= MAX_SIGMA_REL:
        raise InputError(f"{sigma_rel} must be from {MIN_SIGMA_REL} to {MAX_SIGMA_REL}", key="EMA width")
    q = sigma_rel**-2
    # 12 - q < 0 is the only change of sign in the coefficients, so one root is positive (Descartes).
    return float(np.roots([1, 7, 16 - q, 12 - q]).real.max())


def decay(sigma_rel: float, step: int) -> float:
    """Returns beta = (1 - 1/step)^(gamma + 1) of the update ema <- beta ema + (1 - beta) theta at step 1, 2, ... (EDM2, app. C).

    beta is 0 at step 1, so the initial value has no effect. Step tau then has the weight of p integrated over (tau - 1, tau].
    """
    return (1 - 1 / step) ** (gamma_from_sigma_rel(sigma_rel) + 1)


def coefficients(steps: list[int], sigma_rels: list[float], step: int, sigma_rel: float) -> tuple[np.ndarray, float]:
    """Returns the weights of stored EMAs i = (steps[i], sigma_rels[i]) in the EMA (step, sigma_rel), (N,), and the residual.

    They minimize the L2 distance of the profiles (EDM2, app. C) under the condition that they sum to 1, so that parameters which
    no longer change are reproduced exactly. The residual is this distance divided by the norm of the target profile: the relative
    error if theta is independent noise at each step.

    Raises InputError for a value that `gamma_from_sigma_rel` refuses.
    """
    t, gamma = np.array([*steps, step], float), np.array([gamma_from_sigma_rel(value) for value in [*sigma_rels, sigma_rel]])
    # <p_i, p_j> on [0, min(t_i, t_j)], written so that no power overflows.
    shared = np.minimum.outer(t, t)
    powers = (shared / t[:, None]) ** gamma[:, None] * (shared / t) ** gamma
    products = np.multiply.outer(gamma + 1, gamma + 1) / (np.add.outer(gamma, gamma) + 1) * powers / np.maximum.outer(t, t)
    norm = np.sqrt(products.diagonal())
    products /= np.multiply.outer(norm, norm)
    gram, goal, integral = products[:-1, :-1], products[:-1, -1], norm[-1] / norm[:-1]
    # Profiles of neighbouring snapshots are nearly parallel; directions that float64 cannot resolve are left out.
    values, vectors = np.linalg.eigh(gram)
    resolved = values > 1e-12 * values[-1]
    inverse = vectors[:, resolved] / values[resolved] @ vectors[:, resolved].T
    x = inverse @ goal
    x += inverse @ integral * (1 - integral @ x) / (integral @ inverse @ integral)
    residual = np.sqrt(max(0.0, 1 - 2 * goal @ x + x @ gram @ x))
    return x * integral, float(residual)


def from_snapshots(steps: list[int], sigma_rel: float) -> tuple[np.ndarray, float]:
    """Returns (coefficients (len(steps), len(TRACKED_SIGMA_REL)), residual) of the EMA at the last of these snapshots."""
    tracked = len(TRACKED_SIGMA_REL)
    flat, residual = coefficients(np.repeat(steps, tracked).tolist(), [*TRACKED_SIGMA_REL] * len(steps), steps[-1], sigma_rel)
    return flat.reshape(len(steps), tracked), residual


def supported_range(steps: list[int]) -> tuple[float, float]:
    """Returns the smallest and the largest sigma_rel, rounded inwards, with an accepted residual for snapshots of these steps."""
    grid = np.linspace(MIN_SIGMA_REL, MAX_SIGMA_REL, 56).round(3).tolist()
    accepted = [sigma_rel for sigma_rel in grid if from_snapshots(steps, sigma_rel)[1] <= TOLERANCE]
    return accepted[0], accepted[-1]


def snapshot_file(folder: Path, step: int) -> Path:
    """Returns the file of a step's snapshot in a model folder."""
    return folder / SNAPSHOTS / f"step_{step:07d}.safetensors"


def list_snapshots(folder: Path) -> list[int]:
    """Returns the steps, ascending, of the snapshots in a model folder; other names than those of `snapshot_file` are none."""
    matches = (re.fullmatch(r"step_(\d{7,15})\.safetensors", path.name) for path in (folder / SNAPSHOTS).glob("*"))
    steps = ((int(match[1]), match[0]) for match in matches if match)
    return sorted(step for step, name in steps if step > 0 and snapshot_file(folder, step).name == name)


def save_snapshot(folder: Path, step: int, tracks: dict[float, dict[str, Tensor]]) -> None:
    """Writes the tracked EMAs of a step, {sigma_rel: {name: tensor}}, into a model folder, atomically."""
    if set(tracks) != set(TRACKED_SIGMA_REL):
        raise ValueError(f"a snapshot holds the widths {TRACKED_SIGMA_REL}, not {tuple(tracks)}")
    weights = {f"{sigma_rel:g}/{name}": value for sigma_rel in TRACKED_SIGMA_REL for name, value in tracks[sigma_rel].items()}
    save_weights(snapshot_file(folder, step), weights)


def read_snapshot(folder: Path, step: int) -> dict[float, dict[str, Tensor]]:
    """Returns the tracked EMAs of a step, {sigma_rel: {name: tensor}}; one that the file does not hold is empty.

    Raises InputError if the file is missing or damaged, or holds anything but real numbers.
    """
    weights = read_weights(snapshot_file(folder, step), "train")
    if wrong := next((name for name, value in weights.items() if not value.is_floating_point()), None):
        raise InputError(f"{wrong} is {weights[wrong].dtype}, not a float; {remake('train')}", key=snapshot_file(folder, step))
    prefixes = {sigma_rel: f"{sigma_rel:g}/" for sigma_rel in TRACKED_SIGMA_REL}
    return {
        sigma_rel: {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        for sigma_rel, prefix in prefixes.items()
    }


def rebuild(folder: Path, sigma_rel: float) -> dict[str, Tensor]:
    """Returns the weights of the EMA at the last snapshot of a model folder, on the CPU, in the dtypes of the snapshots.

    Raises InputError if there are no snapshots, if one is damaged or has other tensors, and if they do not support sigma_rel.
    """
    steps = list_snapshots(folder)
    if not steps:
        raise InputError("holds no snapshots; set train.snapshots above 0 and run `dvc repro train`", key=folder / SNAPSHOTS)
    shares, residual = from_snapshots(steps, sigma_rel)
    if residual > TOLERANCE:
        low, high = supported_range(steps)
        raise InputError(
            f"cannot give an EMA of width {sigma_rel:g}, only of {low:g} to {high:g} (residual {residual:.0%} with {len(steps)} "
            "snapshots); choose one of these, or raise train.snapshots",
            key=folder / SNAPSHOTS,
        )
    example = read_snapshot(folder, steps[0])[TRACKED_SIGMA_REL[0]]
    # Summed in float64: the coefficients have both signs and can be a hundred times their sum.
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in example.items()}
    for step, row in zip(steps, shares.tolist(), strict=True):
        for weights, share in zip(read_snapshot(folder, step).values(), row, strict=True):
            if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in total.items()}:
                raise InputError(
                    f"holds other weights than {snapshot_file(folder, steps[0]).name}; make it again with `dvc repro -f train`",
                    key=snapshot_file(folder, step),
                )
            for name, value in weights.items():
                total[name].add_(value, alpha=share)
    return {name: value.to(example[name].dtype) for name, value in total.items()}
