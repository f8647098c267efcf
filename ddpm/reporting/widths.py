"""Quality over EMA width: its figure, its chart for DVC, its metrics, and its section on the page of the sweep."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ddpm.files import write_text
from ddpm.reporting.figures import fid_over_width
from ddpm.reporting.tables import number, percent, table

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
