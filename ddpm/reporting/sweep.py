"""The page of the sweep: FID over network evaluations, as a figure, a table, and a chart for DVC; then over EMA width."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ddpm.files import write_json, write_text
from ddpm.reporting.figures import fid_over_nfe
from ddpm.reporting.tables import number, table
from ddpm.reporting.widths import widths_section, write_widths

FOLDER = Path("reports/sweep")
BASE, NOISY, RIVAL, BASE_STEPS = "DDIM, eta 0", "DDIM, eta 1", "DPM-Solver++ 2M", 50


def write_sweep(rows: list[dict], widths: list[dict], note: str, floor: float, n: int, dataset: str) -> None:
    """Write reports/sweep: rows {method, spacing, budget, nfe, fid, fid_sd, seconds}; floor is the FID of n real images.

    widths and note are what `sweep_widths` gives.
    """
    frame = pd.DataFrame(rows)
    real = pd.DataFrame([{"method": "real images", "nfe": nfe, "fid": floor} for nfe in (frame.nfe.min(), frame.nfe.max())])
    chart = pd.concat([frame, real])
    write_text(FOLDER / "fid.csv", chart.to_csv(index=False, float_format="%.5f"))
    fid_over_nfe(FOLDER / "fid.png", frame, floor, n)
    metrics: dict = {"n": n, "fid_floor": floor}
    for name, part in frame.groupby("method", sort=False):
        metrics[name] = {f"nfe_{row.nfe}": {"fid": row.fid, "seconds": row.seconds} for row in part.itertuples()}
    metrics["ema"] = write_widths(FOLDER, widths, floor, n)
    write_json(FOLDER / "metrics.json", metrics)
    write_text(FOLDER / "index.md", _page(frame, widths_section(widths, note, n), floor, n, dataset))


def _page(frame: pd.DataFrame, widths: list[str], floor: float, n: int, dataset: str) -> str:
    spread = frame.fid_sd.notna().all()
    return "\n\n".join([
        f"# {dataset}: quality over network evaluations",
        f"FID of n = {n:,} samples in the judge's features, by how often the network is evaluated for each. {number(floor)} is "
        "what as many real test images score. All samplers start from the same noise, and clip the predicted image."
        + (" Mean and standard deviation over disjoint sets of samples." if spread else ""),
        "![FID over network evaluations](fid.png)",
        *_findings(frame),
        "## FID by network evaluations (lower is better)",
        _table(frame, lambda row: f"{row.fid:.3f}" + (f" ± {row.fid_sd:.3f}" if spread else "")),
        "Heun evaluates twice per step but the last, so an odd number of times: one less where the number is even.",
        "## Seconds for all samples",
        _table(frame, lambda row: number(row.seconds)),
        *widths,
    ]) + "\n"  # fmt: skip


def _table(frame: pd.DataFrame, cell: Callable[[NamedTuple], str]) -> str:
    budgets = sorted(frame.budget.unique())
    rows = []
    for name, part in frame.groupby("method", sort=False):
        cells = {row.budget: cell(row) for row in part.itertuples()}
        rows.append([name, part.spacing.iloc[0], *(cells.get(budget, "-") for budget in budgets)])
    return table(["sampler", "grid", *(f"{budget:,}" for budget in budgets)], rows)


def _findings(frame: pd.DataFrame) -> list[str]:
    """What the literature says of these curves, and what they say themselves."""
    curves = {name: part.set_index("budget") for name, part in frame.groupby("method")}
    base, noisy, rival = (curves.get(name) for name in (BASE, NOISY, RIVAL))
    lines = []
    if base is not None and noisy is not None:
        few = [b for b in base.index if b <= BASE_STEPS and b in noisy.index]
        wins = sum(base.fid[b] < noisy.fid[b] for b in few)
        lines.append(f"With at most {BASE_STEPS} evaluations eta 0 beats eta 1 at {wins} of {len(few)} budgets.")
    if base is not None and rival is not None and BASE_STEPS in base.index:
        goal, margin = base.fid[BASE_STEPS], np.nan_to_num(base.fid_sd[BASE_STEPS])
        reached = [b for b in rival.index if rival.fid[b] <= goal + margin]
        where = f"is as good with {min(reached)} ({rival.fid[min(reached)]:.3f})" if reached else "does not get there"
        lines.append(f"{BASE} has an FID of {goal:.3f} with {BASE_STEPS} evaluations; {RIVAL} {where}{_within(margin)}.")
        last = base.index.max()
        limit, margin = base.fid[last], np.nan_to_num(base.fid_sd[last])
        near = [b for b in rival.index if (rival.fid[rival.index >= b] - limit).abs().max() <= margin]
        if near:
            lines.append(
                f"Both solve the same ODE: with {last:,} evaluations {BASE} has {limit:.3f}, and {RIVAL} has that from "
                f"{min(near)} on{_within(margin)}."
            )
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


def _within(margin: float) -> str:
    return f", within {margin:.3f}, the standard deviation over sets of samples" if margin else ""
