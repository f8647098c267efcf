"""The figure of reports/experiments: quality beside cost, a row per setting."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from ddpm.plots.style import BLUE, GRAY, ORANGE, figure

# By key below the sampler: title, and the line that is drawn across for real images.
PANELS: dict[str, tuple[str, float | None]] = {
    "fid_over_floor": ("FID over that of real images\n(n = {n:,.0f}, lower is better)", 1.0),
    "accuracy": ("Samples seen as the class\nasked for (higher is better)", None),
    "seconds_per_1000": ("Seconds per 1,000 images\n(lower is better)", None),
}

DECADE = 5  # values that span more than this factor get a logarithmic axis


def quality_figure(
    path: Path, labels: Sequence[str], scores: Sequence[pd.DataFrame], methods: Mapping[str, str], n: float
) -> None:
    """A dot per seed, and mean and standard deviation of each setting, for both samplers.

    labels and scores belong to one setting each; scores has columns `sampler.key`; methods names the samplers.
    """
    keys = [key for key in PANELS if any(f[f"{name}.{key}"].notna().any() for f in scores for name in methods)]
    lines = max(label.count(", ") for label in labels) + 1
    with figure(path, len(keys), 9, 1.7 + max(0.5, 0.2 * lines) * len(labels)) as axes:
        for ax, key in zip(axes, keys, strict=True):
            title, real = PANELS[key]
            for (name, method), colour, side in zip(methods.items(), (BLUE, ORANGE), (-0.14, 0.14), strict=True):
                _dots(ax, [frame[f"{name}.{key}"].dropna() for frame in scores], side, colour, method)
            if real is not None:
                ax.axvline(real, color=GRAY, linewidth=1.5, linestyle=":", label="real images")
            ax.set_title(title.format(n=n))
            ax.set_ylim(len(labels) - 0.5, -0.5)
            ax.set_yticks(range(len(labels)), [label.replace(", ", "\n") for label in labels] if ax is axes[0] else [])
            ax.grid(axis="y", visible=False)
            _scale(ax, np.concatenate([f[f"{name}.{key}"].dropna() for f in scores for name in methods]), key)
        handles, names = axes[0].get_legend_handles_labels()
        axes[0].figure.legend(handles, names, loc="outside lower center", ncols=len(names))


def _dots(ax: Axes, values: Sequence[pd.Series], side: float, colour: str, method: str) -> None:
    for row, of_seeds in enumerate(values):
        if of_seeds.empty:
            continue
        error = of_seeds.std() if len(of_seeds) > 1 else None
        if len(of_seeds) > 1:
            ax.plot(of_seeds, np.full(len(of_seeds), row + side), ".", color=colour, alpha=0.35, markersize=6)
        ax.errorbar(
            of_seeds.mean(), row + side, xerr=error, fmt="o", color=colour, capsize=3, markersize=6, label="" if row else method
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
