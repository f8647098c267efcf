"""The page of the sweep: FID over network evaluations, as a figure, a table, and a chart for DVC; then over EMA width.

Quality over EMA width: its figure, its chart for DVC, its metrics, and its section on the page of the sweep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ddpm.core.files import write_json, write_text
from ddpm.plots.figures import fid_over_nfe, fid_over_width
from ddpm.plots.numbers import number, percent, table

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


# Where the reference lines run if there is no width between them.
SPAN = (0.01, 0.25)


def write_widths(folder: Path, rows: list[dict], floor: float, n: int) -> dict:
    """Write ema.csv and ema.png, and return the metrics: FID by checkpoint, and the best width if there are any.

    rows: {checkpoint, width, residual, fid, fid_sd, ...}, `final` first, its width NaN; floor is the FID of n real images.
    """
    frame = pd.DataFrame(rows)
    final, rebuilt = frame.iloc[0], frame.iloc[1:]
    ends = (rebuilt.width.min(), rebuilt.width.max()) if len(rebuilt) else SPAN
    lines = [{"method": name, "width": end, "fid": fid} for name, fid in _levels(final, floor).items() for end in ends]
    chart = pd.concat([rebuilt.assign(method="rebuilt EMA").drop(columns="checkpoint"), pd.DataFrame(lines)])
    write_text(folder / "ema.csv", chart.to_csv(index=False, float_format="%.5f"))
    fid_over_width(folder / "ema.png", rebuilt, _levels(final, floor), n)
    metrics: dict = {row.checkpoint if row.Index == 0 else f"width_{row.width:g}": {"fid": row.fid} for row in frame.itertuples()}
    return metrics | ({"best_width": float(_best(rebuilt).width)} if len(rebuilt) else {})


def widths_section(rows: list[dict], note: str, n: int) -> list[str]:
    """The paragraphs of the page; `note` says what could not be had."""
    frame = pd.DataFrame(rows)
    final, rebuilt = frame.iloc[0], frame.iloc[1:]
    title = "## FID by EMA width (lower is better)"
    if rebuilt.empty:
        return [title, note]
    return [
        title,
        f"{number(int(final.nfe))} steps of DDIM (eta 0), n = {n:,}. The width is the standard deviation of the average's "
        "profile, as a share of the training; all widths are rebuilt from the snapshots of this one training "
        "([Karras et al. 2024](https://arxiv.org/abs/2312.02696)). `final` is the average that the training itself kept "
        "(train.ema_decay). All start from the same noise, so a difference means more than the spread over sets suggests.",
        "![FID over EMA width](ema.png)",
        _finding(final, rebuilt),
        *([note] if note else []),
        table(
            ["EMA width", "FID", "accuracy", "residual of the rebuilding"],
            [[f"{row.width:g}", _fid(row), _share(row.accuracy), percent(row.residual)] for row in rebuilt.itertuples()]
            + [["`final`", _fid(final), _share(final.accuracy), "-"]],
        ),
    ]


def _levels(final: pd.Series, floor: float) -> dict[str, float]:
    return {"final": float(final.fid), "real images": floor}


def _best(rebuilt: pd.DataFrame) -> pd.Series:
    return rebuilt.loc[rebuilt.fid.idxmin()]


def _finding(final: pd.Series, rebuilt: pd.DataFrame) -> str:
    best = _best(rebuilt)
    margin = np.nan_to_num(best.fid_sd)
    verdicts = {-1: "better than", 0: "as good as", 1: "worse than"}
    gap = best.fid - final.fid
    verdict = verdicts[int(np.sign(gap)) if abs(gap) > margin else 0]
    near = [f"{width:g}" for width in rebuilt.width[(rebuilt.fid <= best.fid + margin) & (rebuilt.width != best.width)]]
    lines = [f"The best width is {best.width:g}, with an FID of {_fid(best)}: {verdict} `final` with {_fid(final)}."]
    if near:
        lines.append(f"As good within its standard deviation: {', '.join(near)}.")
    if len(rebuilt) > 1 and best.width in (rebuilt.width.min(), rebuilt.width.max()):
        lines.append("It lies at the end of the range, so there may be better ones beyond.")
    lines.append(f"`sample_ddim.checkpoint: {best.width:g}` draws with it.")
    return " ".join(lines)


def _fid(row: Any) -> str:
    return f"{row.fid:.3f}" + ("" if np.isnan(row.fid_sd) else f" ± {row.fid_sd:.3f}")


def _share(value: float) -> str:
    return percent(None if np.isnan(value) else value)
