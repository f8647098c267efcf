"""Quality over cost: all samplers on one trained model, each with several numbers of network evaluations.

Quality over the width of the EMA: one training, its averaged weights rebuilt with each width, and one sampler for all."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from ddpm.core.files import InputError
from ddpm.core.params import Section
from ddpm.evaluation.evaluator import Evaluator
from ddpm.networks.checkpoints import CheckpointName
from ddpm.networks.power_ema import MAX_SIGMA_REL, MIN_SIGMA_REL, TOLERANCE, from_snapshots, list_snapshots, supported_range
from ddpm.sampling.generate import draw
from ddpm.sampling.model import DiffusionModel, load
from ddpm.sampling.plan import SamplingPlan, make_plan
from ddpm.sampling.samplers import SAMPLERS

Count = Annotated[int, Field(ge=1)]


class Sweep(Section):
    """The `sweep` section."""

    samples: Annotated[int, Field(ge=2)]
    batch_size: Count
    evaluations: Annotated[list[Count], Field(min_length=1)]
    full_length: bool
    checkpoint: CheckpointName
    ema_widths: list[Annotated[float, Field(ge=MIN_SIGMA_REL, le=MAX_SIGMA_REL)]]
    ema_steps: Count


class Method(NamedTuple):
    """A sampler with the grid that suits it.

    sampler: its name in SAMPLERS.
    spacing: of its grid.
    options: of its step rule.
    full: also drawn with all T steps, as in DDIM's table 1.
    """

    sampler: str
    spacing: str
    options: dict[str, float | str] = {}  # noqa: RUF012 (a NamedTuple's default is never changed)
    full: bool = False


METHODS: dict[str, Method] = {
    "DDIM, eta 0": Method("ddim", "trailing", {"eta": 0.0}, full=True),
    "DDIM, eta 0.5": Method("ddim", "trailing", {"eta": 0.5}),
    "DDIM, eta 1": Method("ddim", "trailing", {"eta": 1.0}, full=True),
    "DDPM, large variance": Method("ddpm", "trailing", {"variance": "large"}, full=True),
    "Euler": Method("euler", "quadratic"),
    "Heun": Method("heun", "trailing"),
    "AB2": Method("ab2", "quadratic"),
    "DPM-Solver++ 2M": Method("dpmpp_2m", "log_snr"),
    "SDE-DPM-Solver++ 2M": Method("dpmpp_2m_sde", "log_snr"),
}


def plan_method(name: str, model: DiffusionModel, budget: int) -> SamplingPlan:
    """Return the plan of a method that evaluates the network at most `budget` times per image."""
    method = METHODS[name]
    steps = (budget + 1) // 2 if SAMPLERS[method.sampler].second_order else budget
    plan = make_plan(model, sampler=method.sampler, steps=steps, spacing=method.spacing, **method.options)
    return plan._replace(label=name)


def judged(model: DiffusionModel, plan: SamplingPlan, judges: Evaluator, settings: Sweep, seed: int, autocast: Callable) -> dict:
    """Draw by a plan, from the same noise whatever the plan, and judge: {nfe, fid, fid_sd, accuracy, seconds}.

    fid_sd is NaN where there are fewer than three sets of samples, accuracy where the network takes no class.
    """
    drawn = draw(model, plan, settings.samples, settings.batch_size, seed, "sweep", autocast)
    scores = judges.fid(drawn.arrays["arr_0"], drawn.arrays.get("arr_1"), "sweep")
    return {
        "nfe": plan.nfe,
        "fid": scores["fid"],
        "fid_sd": scores.get("fid_sd", np.nan),
        "accuracy": scores.get("accuracy", np.nan),
        "seconds": drawn.cost["seconds"],
    }


def sweep(
    model: DiffusionModel, judges: Evaluator, settings: Sweep, seed: int, autocast: Callable, on_row: Callable[[dict], None]
) -> list[dict]:
    """Draw with every method and budget, and judge: rows {method, spacing, budget} and what `judged` gives, each handed to
    `on_row` as well.

    Raises InputError for a budget that the model does not have, that of the EMA widths included.
    """
    total = model.schedule.steps
    for key, budget in (("evaluations", max(settings.evaluations)), ("ema_steps", settings.ema_steps)):
        if budget > total:
            raise InputError(f"{budget} is more than the model's T = {total} steps", key=f"sweep.{key}", where="params.yaml")
    rows = []
    for name, method in METHODS.items():
        budgets = sorted({*settings.evaluations, *([total] if method.full and settings.full_length else [])})
        for budget in budgets:
            plan = plan_method(name, model, budget)
            row = {"method": name, "spacing": method.spacing, "budget": budget}
            rows.append(row | judged(model, plan, judges, settings, seed, autocast))
            on_row(rows[-1])
    return rows


METHOD = "DDIM, eta 0"
REFERENCE = "final"


def sweep_widths(
    folder: Path, judges: Evaluator, settings: Sweep, seed: int, autocast: Callable, on_row: Callable[[dict], None]
) -> tuple[list[dict], str]:
    """Draw from a model folder with `final` and with the EMA of each width, and judge: (rows, note).

    Rows are {checkpoint, width, residual} and what `judged` gives, each handed to `on_row` as well; `final` comes first, its
    width and residual NaN. residual is that of `posthoc.coefficients`. note: one line on what could not be had, or "".

    Raises InputError for damaged snapshots.
    """
    steps = list_snapshots(folder)
    wanted = sorted(set(settings.ema_widths))
    residuals = {width: from_snapshots(steps, width)[1] for width in wanted} if steps else {}
    usable = [width for width in residuals if residuals[width] <= TOLERANCE]
    rows = []
    for checkpoint in (REFERENCE, *usable):
        model = load(checkpoint, judges.device, folder)
        row = {"checkpoint": checkpoint, "width": np.nan, "residual": np.nan}
        if checkpoint in residuals:
            row |= {"width": checkpoint, "residual": residuals[checkpoint]}
        plan = plan_method(METHOD, model, settings.ema_steps)
        rows.append(row | judged(model, plan, judges, settings, seed, autocast))
        on_row(rows[-1])
    return rows, _note(steps, wanted, [width for width in wanted if width not in usable])


def _note(steps: list[int], wanted: list[float], missed: list[float]) -> str:
    if not wanted:
        return "No EMA widths are compared: sweep.ema_widths is empty."
    if not steps:
        return "No EMA widths are compared: the model was trained without snapshots (train.snapshots)."
    if not missed:
        return ""
    names = ", ".join(f"{width:g}" for width in missed)
    narrowest, widest = supported_range(steps)
    return f"Left out: {names}. {len(steps)} snapshots reach from {narrowest:g} to {widest:g}; train.snapshots gives more."
