"""Writes reports/sweep: FID over network evaluations for each sampler, and FID over the EMA width. The text is sweep.md.j2."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ddpm.core.files import write_json, write_text
from ddpm.plots.figures import fid_over_nfe, fid_over_width
from ddpm.plots.markdown import render
from ddpm.plots.numbers import fixed, number

FOLDER = Path("reports/sweep")
# Curves that the page compares, and the budget at which it does.
BASE, NOISY, RIVAL, BASE_BUDGET = "DDIM, eta 0", "DDIM, eta 1", "DPM-Solver++ 2M", 50
# Ends of the reference lines where there is no width between them.
WIDTH_RANGE = (0.01, 0.25)


def write_sweep(rows: list[dict], widths: list[dict], note: str, floor: float, n: int, dataset: str, model: dict) -> None:
    """Writes index.md, metrics.json, and a figure and a CSV for each of both comparisons.

    rows: {method, spacing, budget, nfe, fid, fid_sd, seconds} of each sampler and budget.
    widths: {checkpoint, width, residual, nfe, fid, fid_sd, accuracy} of each EMA, first `final`, whose width is NaN.
    note: states which widths are missing and why; "" if none are. floor: FID of n real images. model: checkpoint and SHA-256.
    """
    frame, averages = pd.DataFrame(rows), pd.DataFrame(widths)
    metrics: dict = {"model": model, "n": n, "fid_floor": floor}
    for name, part in frame.groupby("method", sort=False):
        metrics[name] = {f"nfe_{row.nfe}": {"fid": row.fid, "seconds": row.seconds} for row in part.itertuples()}
    metrics["ema"] = {
        row.checkpoint if row.Index == 0 else f"width_{row.width:g}": {"fid": row.fid} for row in averages.itertuples()
    }
    facts = width_facts(averages)
    if facts["rows"]:
        metrics["ema"]["best_width"] = float(facts["best"]["width"])
    write_json(FOLDER / "metrics.json", metrics)
    _draw(frame, averages, floor, n)
    spread = frame.fid_sd.notna().all()
    page = render(
        Path(__file__).with_name("sweep.md.j2"),
        dataset=dataset, n=n, floor=floor, has_spread=spread, budgets=sorted(frame.budget.unique().tolist()),
        fids=_table_rows(frame, lambda row: fixed(row.fid, row.fid_sd if spread else None)),
        seconds=_table_rows(frame, lambda row: number(row.seconds)),
        base={"name": BASE, "budget": BASE_BUDGET}, rival=RIVAL, widths=facts, note=note, **curve_facts(frame),
    )  # fmt: skip
    write_text(FOLDER / "index.md", page)


def _draw(frame: pd.DataFrame, averages: pd.DataFrame, floor: float, n: int) -> None:
    real = pd.DataFrame([{"method": "real images", "nfe": nfe, "fid": floor} for nfe in (frame.nfe.min(), frame.nfe.max())])
    write_text(FOLDER / "fid.csv", pd.concat([frame, real]).to_csv(index=False, float_format="%.5f"))
    fid_over_nfe(FOLDER / "fid.png", frame, floor, n)
    rebuilt = averages.iloc[1:]
    levels = {"final": float(averages.fid.iloc[0]), "real images": floor}
    ends = (rebuilt.width.min(), rebuilt.width.max()) if len(rebuilt) else WIDTH_RANGE
    lines = pd.DataFrame([{"method": name, "width": end, "fid": fid} for name, fid in levels.items() for end in ends])
    chart = pd.concat([rebuilt.assign(method="rebuilt EMA").drop(columns="checkpoint"), lines])
    write_text(FOLDER / "ema.csv", chart.to_csv(index=False, float_format="%.5f"))
    fid_over_width(FOLDER / "ema.png", rebuilt, levels, n)


def _table_rows(frame: pd.DataFrame, cell: Callable[[Any], str]) -> list[list[str]]:
    budgets, rows = sorted(frame.budget.unique()), []
    for name, part in frame.groupby("method", sort=False):
        cells = {row.budget: cell(row) for row in part.itertuples()}
        rows.append([name, part.spacing.iloc[0], *(cells.get(budget, "-") for budget in budgets)])
    return rows


def curve_facts(frame: pd.DataFrame) -> dict[str, dict]:
    """Returns what the page states of the curves, each empty where it does not apply.

    eta: at how many budgets up to BASE_BUDGET the FID of BASE is lower than that of NOISY.
    solver: the fewest evaluations with which RIVAL reaches the FID that BASE has at BASE_BUDGET.
    limit: from which budget on RIVAL has the FID of BASE at its largest budget; both solve the same ODE.
    """
    facts: dict[str, dict] = {"eta": {}, "solver": {}, "limit": {}}
    curves = {name: part.set_index("budget") for name, part in frame.groupby("method")}
    base, noisy, rival = (curves.get(name) for name in (BASE, NOISY, RIVAL))
    if base is not None and noisy is not None:
        few = [b for b in base.index if b <= BASE_BUDGET and b in noisy.index]
        facts["eta"] = {"wins": sum(base.fid[b] < noisy.fid[b] for b in few), "budgets": len(few)}
    if base is not None and rival is not None and BASE_BUDGET in base.index:
        goal, margin = base.fid[BASE_BUDGET], np.nan_to_num(base.fid_sd[BASE_BUDGET])
        reached = min((b for b in rival.index if rival.fid[b] <= goal + margin), default=None)
        facts["solver"] = {"goal": goal, "margin": margin, "reached": reached, "fid": reached and rival.fid[reached]}
        last = base.index.max()
        goal, margin = base.fid[last], np.nan_to_num(base.fid_sd[last])
        reached = min((b for b in rival.index if (rival.fid[rival.index >= b] - goal).abs().max() <= margin), default=None)
        if reached is not None:
            facts["limit"] = {"budget": int(last), "fid": goal, "margin": margin, "reached": reached}
    return facts


def width_facts(averages: pd.DataFrame) -> dict[str, Any]:
    """Returns what the page states of the EMA widths: rows and final, and, if there are rows, the following.

    best: the row with the lowest FID. verdict: how it compares with `final`. near: other widths within its standard deviation.
    at_end: whether it is the narrowest or the widest of several.
    """
    final, *rows = averages.to_dict("records")
    facts: dict[str, Any] = {"final": final, "rows": rows}
    if rows:
        best = min(rows, key=lambda row: row["fid"])
        gap, margin = best["fid"] - final["fid"], np.nan_to_num(best["fid_sd"])
        widths = [row["width"] for row in rows]
        facts |= {
            "best": best,
            "verdict": "as good as" if abs(gap) <= margin else "better than" if gap < 0 else "worse than",
            "near": [f"{row['width']:g}" for row in rows if row is not best and row["fid"] <= best["fid"] + margin],
            "at_end": len(rows) > 1 and best["width"] in (min(widths), max(widths)),
        }
    return facts
