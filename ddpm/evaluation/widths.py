"""Quality over the width of the EMA: one training, its averaged weights rebuilt with each width, and one sampler for all."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddpm.evaluation.scores import Judges
from ddpm.evaluation.sweep import Sweep, judged, plan_method
from ddpm.networks.posthoc import TOLERANCE, from_snapshots, reach
from ddpm.networks.snapshots import list_snapshots
from ddpm.sampling.model import load

METHOD = "DDIM, eta 0"
REFERENCE = "final"


def sweep_widths(
    folder: Path, judges: Judges, settings: Sweep, seed: int, autocast: Callable, on_row: Callable[[dict], None]
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
    narrowest, widest = reach(steps)
    return f"Left out: {names}. {len(steps)} snapshots reach from {narrowest:g} to {widest:g}; train.snapshots gives more."
