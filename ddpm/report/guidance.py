"""Guidance in the report: its figure, its table, and what they say."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from ddpm.plots.numbers import percent, table
from ddpm.plots.style import PALETTE, figure

PANELS = {
    "accuracy": "Samples seen as the class\nasked for (higher is better)",
    "recall": "Recall: is everything drawn?\n(higher is better)",
    "fid": "FID in the judge's features\n(lower is better)",
}


def guidance_curves(path: Path, frame: pd.DataFrame) -> None:
    """Accuracy, recall and FID over the scale of guidance. frame: method, scale, fid, fid_sd, precision, recall, accuracy."""
    with figure(path, len(PANELS), 9, 3.2) as axes:
        for ax, (key, title) in zip(axes, PANELS.items(), strict=True):
            for (name, part), style, colour in zip(frame.groupby("method", sort=False), ("o-", "s--"), PALETTE, strict=False):
                spread = part.fid_sd if key == "fid" and part.fid_sd.notna().all() else None
                ax.errorbar(part.scale, part[key], spread, fmt=style, color=colour, markersize=4, capsize=2, label=name)
            ax.axvline(1, color="#BBBBBB", linewidth=1, linestyle=":")
            ax.set(title=title, xlabel="scale of guidance")
            ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}") if key == "fid" else PercentFormatter(1, decimals=0))
            ax.set_xlim(-0.04 * frame.scale.max(), 1.04 * frame.scale.max())
        if frame.method.nunique() > 1:
            axes[0].legend(fontsize=8, loc="lower right")


def guidance_section(frame: pd.DataFrame) -> list[str]:
    """The paragraphs of the page; none where no scales were compared."""
    if frame.empty:
        return []
    several = frame.method.nunique() > 1
    rows = [[*([row.method] if several else []), *_cells(row)] for row in frame.itertuples()]
    heads = ["scale", "NFE", "accuracy ↑", "precision ↑", "recall ↑", "FID ↓"]
    return [
        "## Guidance",
        "Samples of DDIM under classifier-free guidance ([Ho & Salimans 2022](https://arxiv.org/abs/2207.12598)), all from the "
        "same noise. At scale 0 the network is told nothing, at 1 what to draw; beyond, it leans on that: samples become clearer "
        "and more alike." + (" Captions never seen are of templates that training left out." if several else ""),
        "![accuracy, recall and FID over the scale of guidance](report/guidance.png)",
        table((["asked by", *heads] if several else heads), rows),
    ]


def _cells(row: Any) -> list[str]:
    accuracy = percent(None if np.isnan(row.accuracy) else row.accuracy)
    fid = f"{row.fid:.3f}" + ("" if np.isnan(row.fid_sd) else f" ± {row.fid_sd:.3f}")
    return [f"{row.scale:g}", f"{row.nfe:,}", accuracy, f"{row.precision:.3f}", f"{row.recall:.3f}", fid]
