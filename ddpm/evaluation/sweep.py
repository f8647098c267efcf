"""Compares samplers over the number of network evaluations, and EMA widths, rebuilt from one training, under one sampler."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ddpm.core.files import InputError
from ddpm.core.params import Section
from ddpm.evaluation.evaluator import CLASSIFIER, Evaluator
from ddpm.networks.checkpoints import CheckpointName
from ddpm.networks.power_ema import MAX_SIGMA_REL, MIN_SIGMA_REL, TOLERANCE, from_snapshots, list_snapshots, supported_range
from ddpm.sampling.generate import generate_set
from ddpm.sampling.model import DiffusionModel, load
from ddpm.sampling.plan import SamplingPlan, make_plan
from ddpm.sampling.samplers import SAMPLERS
from ddpm.sampling.settings import Count


class Sweep(Section):
    """The `sweep` section."""

    samples: Annotated[Count, Field(ge=2)]
    batch_size: Count
    evaluations: Annotated[list[Count], Field(min_length=1, max_length=100)]
    full_length: bool
    checkpoint: CheckpointName
    ema_widths: Annotated[list[Annotated[float, Field(ge=MIN_SIGMA_REL, le=MAX_SIGMA_REL)]], Field(max_length=100)]
    ema_steps: Count


# Samplers with the grids that suit them, as options of `make_plan`.
METHODS: dict[str, dict[str, Any]] = {
    "DDIM, eta 0": {"sampler": "ddim", "spacing": "trailing", "eta": 0.0},
    "DDIM, eta 0.5": {"sampler": "ddim", "spacing": "trailing", "eta": 0.5},
    "DDIM, eta 1": {"sampler": "ddim", "spacing": "trailing", "eta": 1.0},
    "DDPM, large variance": {"sampler": "ddpm", "spacing": "trailing", "variance": "large"},
    "Euler": {"sampler": "euler", "spacing": "quadratic"},
    "Heun": {"sampler": "heun", "spacing": "trailing"},
    "AB2": {"sampler": "ab2", "spacing": "quadratic"},
    "DPM-Solver++ 2M": {"sampler": "dpmpp_2m", "spacing": "log_snr"},
    "SDE-DPM-Solver++ 2M": {"sampler": "dpmpp_2m_sde", "spacing": "log_snr"},
}
FULL_LENGTH = ("DDIM, eta 0", "DDIM, eta 1", "DDPM, large variance")  # also run with all T steps, as in table 1 of DDIM
WIDTH_METHOD = "DDIM, eta 0"  # of samples with each EMA width
REFERENCE = "final"  # checkpoint that widths are compared with


def plan_method(name: str, model: DiffusionModel, budget: int) -> SamplingPlan:
    """Returns the plan of a method that evaluates the network at most `budget` times per image."""
    method = METHODS[name]
    steps = (budget + 1) // 2 if SAMPLERS[method["sampler"]].second_order else budget
    return make_plan(model, steps=steps, **method)._replace(label=name)


def sweep(
    model: DiffusionModel, evaluator: Evaluator, settings: Sweep, seed: int, autocast: Callable, on_row: Callable[[dict], None]
) -> list[dict]:
    """Generates samples with every method and budget and scores them: rows {method, spacing, budget, nfe, fid, ...}.

    on_row: called with each row. Raises InputError for a budget above the model's T, also for that of the EMA widths, and for a
    classifier whose features measure nothing.
    """
    if evaluator.classifier.status != "ok":
        raise InputError(f"{evaluator.classifier.status}; raise train_classifier.epochs, or give more images", key="sweep")
    total = model.schedule.steps
    for key, budget in (("evaluations", max(settings.evaluations)), ("ema_steps", settings.ema_steps)):
        if budget > total:
            raise InputError(f"{budget} is more than the model's T = {total} steps", key=f"sweep.{key}", where="params.yaml")
    rows = []
    for name, method in METHODS.items():
        for budget in sorted({*settings.evaluations, *([total] if name in FULL_LENGTH and settings.full_length else [])}):
            row = {"method": name, "spacing": method["spacing"], "budget": budget}
            rows.append(row | _score_plan(model, plan_method(name, model, budget), evaluator, settings, seed, autocast))
            on_row(rows[-1])
    return rows


def sweep_widths(
    folder: Path, evaluator: Evaluator, settings: Sweep, seed: int, autocast: Callable, on_row: Callable[[dict], None]
) -> tuple[list[dict], str]:
    """Generates samples from a model folder with `final` and with the EMA of each width, and scores them: (rows, note).

    Rows are {checkpoint, width, residual, nfe, fid, ...}, and on_row is called with each; `final` comes first, with NaN as its
    width and residual. residual: error of the rebuilt average, see power_ema. note: one line on the widths that are left out, or
    "".

    Raises InputError for damaged snapshots.
    """
    steps = list_snapshots(folder)
    widths = sorted(set(settings.ema_widths))
    residuals = {width: from_snapshots(steps, width)[1] for width in widths} if steps else {}
    usable = [width for width in residuals if residuals[width] <= TOLERANCE]
    rows = []
    for checkpoint in (REFERENCE, *usable):
        model = load(checkpoint, evaluator.device, folder)
        width = np.nan if checkpoint == REFERENCE else checkpoint
        row = {"checkpoint": checkpoint, "width": width, "residual": residuals.get(checkpoint, np.nan)}
        plan = plan_method(WIDTH_METHOD, model, settings.ema_steps)
        rows.append(row | _score_plan(model, plan, evaluator, settings, seed, autocast))
        on_row(rows[-1])
    return rows, _note(steps, widths, [width for width in widths if width not in usable])


def _score_plan(
    model: DiffusionModel, plan: SamplingPlan, evaluator: Evaluator, settings: Sweep, seed: int, autocast: Callable
) -> dict:
    """Generates samples, from the same noise for every plan, and scores them: {nfe, fid, fid_sd, accuracy, seconds}.

    fid_sd is NaN where there are fewer than three sets of samples, accuracy where the network takes, or the classifier predicts,
    no class.
    """
    samples = generate_set(model, plan, settings.samples, settings.batch_size, seed, "sweep", autocast)
    scores = evaluator.evaluate(samples.arrays["arr_0"], samples.arrays.get("arr_1"), "sweep", level="fid").scores
    row = {"nfe": plan.nfe, "fid": scores[CLASSIFIER]["fid"], "fid_sd": scores[CLASSIFIER].get("fid_sd", np.nan)}
    return row | {"accuracy": scores.get("accuracy", np.nan), "seconds": samples.cost["seconds"]}


def _note(steps: list[int], widths: list[float], left_out: list[float]) -> str:
    if not widths:
        return "No EMA widths are compared: sweep.ema_widths is empty."
    if not steps:
        return "No EMA widths are compared: the model was trained without snapshots (train.snapshots)."
    if not left_out:
        return ""
    names = ", ".join(f"{width:g}" for width in left_out)
    narrowest, widest = supported_range(steps)
    return f"Left out: {names}. {len(steps)} snapshots reach from {narrowest:g} to {widest:g}; train.snapshots gives more."
