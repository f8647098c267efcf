"""Draws the figure of reports/experiments: quality and cost, a row for each setting."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from ddpm.plots.style import BLUE, GRAY, ORANGE, figure, plain

# By key below a set of samples: title, and the value of real images, which is drawn as a line.
PANELS: dict[str, tuple[str, float | None]] = {
    "fid_over_floor": ("FID / FID of real test images\n(n = {n:,.0f}, lower is better)", 1.0),
    "accuracy": ("Samples classified as the\nrequested class (higher is better)", None),
    "seconds_per_1000": ("Seconds per 1,000 images\n(lower is better)", None),
}

DECADE = 5  # values that span more than this factor get a logarithmic axis


def quality_figure(
    path: Path, labels: Sequence[str], scores: Sequence[pd.DataFrame], samplers: Mapping[str, str], n: float
) -> None:
    """Draws a dot for each seed, and mean and standard deviation of each setting, for both sets of samples.

    labels, scores: one for each setting; columns of scores: NAME.KEY. samplers: title of each NAME.
    """
    keys = [key for key in PANELS if any(f[f"{name}.{key}"].notna().any() for f in scores for name in samplers)]
    lines = max(label.count(", ") for label in labels) + 1
    names = plain(labels)
    with figure(path, len(keys), 9, 1.7 + max(0.5, 0.2 * lines) * len(labels), names) as axes:
        for ax, key in zip(axes, keys, strict=True):
            title, real = PANELS[key]
            for (name, sampler), colour, offset in zip(samplers.items(), (BLUE, ORANGE), (-0.14, 0.14), strict=True):
                _dots(ax, [frame[f"{name}.{key}"].dropna() for frame in scores], offset, colour, sampler)
            if real is not None:
                ax.axvline(real, color=GRAY, linewidth=1.5, linestyle=":", label="real test images")
            ax.set_title(title.format(n=n))
            ax.set_ylim(len(labels) - 0.5, -0.5)
            ax.set_yticks(range(len(labels)), [name.replace(", ", "\n") for name in names] if ax is axes[0] else [])
            ax.grid(axis="y", visible=False)
            _scale(ax, np.concatenate([f[f"{name}.{key}"].dropna() for f in scores for name in samplers]), key)
        handles, names = axes[0].get_legend_handles_labels()
        axes[0].figure.legend(handles, names, loc="outside lower center", ncols=len(names))


def _dots(ax: Axes, values: Sequence[pd.Series], offset: float, colour: str, sampler: str) -> None:
    for row, seeds in enumerate(values):
        if seeds.empty:
            continue
        error = seeds.std() if len(seeds) > 1 else None
        if len(seeds) > 1:
            ax.plot(seeds, np.full(len(seeds), row + offset), ".", color=colour, alpha=0.35, markersize=6)
        ax.errorbar(
            seeds.mean(), row + offset, xerr=error, fmt="o", color=colour, capsize=3, markersize=6, label="" if row else sampler
        )


def _scale(ax: Axes, values: np.ndarray, key: str) -> None:
    if key == "accuracy":
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0 if np.ptp(values) > 0.05 else 1))
    elif values.min() > 0 and values.max() > DECADE * values.min():
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.set_xlim(left=0)
