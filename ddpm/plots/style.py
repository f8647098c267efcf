"""The common style of all figures: readable at the width of a README, with colours that colour-blind readers can tell apart."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddpm.core.files import atomic
from ddpm.plots.fonts import drawable, families

# Okabe and Ito's palette.
BLUE, ORANGE, GRAY = "#0072B2", "#E69F00", "#666666"
PALETTE = [BLUE, ORANGE, "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#B8A800", "#8C4A2F", "#999999"]

STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def plain(names: Iterable[str]) -> list[str]:
    """Returns names from files as Matplotlib can draw them, `drawable` and without formulas between dollar signs."""
    return [drawable(name).replace("$", r"\$") for name in names]


def with_styles(series: Iterable[Any], *styles: Sequence[str]) -> Iterator[tuple]:
    """Yields each series with an entry of each sequence of styles; where there are more series than styles, these repeat."""
    for k, one in enumerate(series):
        yield one, *(style[k % len(style)] for style in styles)


@contextmanager
def figure(path: Path, panels: int, width: float, height: float, names: Iterable[str] = ()) -> Iterator[list[Axes]]:
    """Yields the axes of a figure with panels side by side, then writes it as a PNG, atomically. Sizes are in inches.

    names: texts from files that it shows, as `plain` returns them; the figure uses fonts that have their characters.
    """
    with matplotlib.rc_context({**STYLE, "font.family": families(names)}):
        canvas = Figure(figsize=(width, height), dpi=120, layout="constrained")
        yield list(canvas.subplots(1, panels, squeeze=False)[0])
        with atomic(path) as temporary:
            canvas.savefig(temporary, metadata={"Software": None})
