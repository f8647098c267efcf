"""Figures for people, in one style: PNG, readable at the width of a README, safe for the colour-blind."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddpm.files import atomic

# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, GRAY, RED = "#0072B2", "#E69F00", "#009E73", "#666666", "#D55E00"
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


@contextmanager
def figure(path: Path, panels: int, width: float, height: float) -> Iterator[list[Axes]]:
    """Yield the axes of a figure with panels side by side; write it as a PNG, atomically."""
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(width, height), dpi=120, layout="constrained")
        yield list(canvas.subplots(1, panels, squeeze=False)[0])
        with atomic(path) as temporary:
            canvas.savefig(temporary, metadata={"Software": None})


def comparison(path: Path, rows: Sequence[dict], floor: float, n: int) -> None:
    """Quality beside cost. rows: sampler, fid, accuracy (or None), seconds, nfe."""
    names, colours = [row["sampler"] for row in rows], [BLUE, ORANGE, GREEN][: len(rows)]
    panels = [
        ("fid", f"FID, judge's features, n = {n:,}\n(lower is better)", "{:.3f}"),
        ("accuracy", "Samples seen as the class\nasked for (higher is better)", "{:.1%}"),
        ("nfe", "Network evaluations\nper sample (lower is better)", "{:,}"),
    ]
    panels = [panel for panel in panels if rows[0][panel[0]] is not None]
    with figure(path, len(panels), 9, 2.9) as axes:
        for ax, (key, title, form) in zip(axes, panels, strict=True):
            values = [row[key] for row in rows]
            bars = ax.bar(names, values, color=colours, width=0.6)
            ax.bar_label(bars, [form.format(value) for value in values], padding=2)
            ax.set_title(title)
            ax.set_ylim(0, max([*values, floor if key == "fid" else 0]) * 1.18)
            ax.grid(axis="x", visible=False)
            if key == "fid":
                ax.axhline(floor, color=GRAY, linestyle="--", label=f"real images: {floor:.3f}")
                ax.legend(loc="lower center", fontsize=9, facecolor="white", framealpha=0.85, frameon=True)


def psnr_over_t(path: Path, curve: pd.DataFrame) -> None:
    """PSNR of one-step denoising over the noise level. curve: fraction, method, psnr."""
    lines = [
        ("network", "the network", BLUE, "o-"),
        ("wiener", "Wiener filter", ORANGE, "s--"),
        ("zero", "no denoising", GRAY, "^:"),
    ]
    with figure(path, 1, 6.5, 3.4) as (ax,):
        for method, name, colour, style in lines:
            part = curve[curve.method == method]
            ax.plot(part.fraction, part.psnr, style, color=colour, label=name)
        ax.set(xlabel="noise level t / T", ylabel="PSNR in dB", title="One-step denoising of test images (higher is better)")
        ax.legend()


def loss_curve(path: Path, loss: pd.DataFrame, validation: pd.DataFrame) -> None:
    """Training and validation loss over optimizer steps. Frames: step, and loss or validation_loss."""
    with figure(path, 1, 6.5, 3.4) as (ax,):
        ax.plot(loss.step, loss.loss, color=BLUE, linewidth=1, label="training")
        ax.plot(validation.step, validation.validation_loss, "o-", color=ORANGE, markersize=4, label="test images, EMA weights")
        ax.set(xlabel="optimizer step", ylabel="weighted loss", title="Training (lower is better)", yscale="log")
        ax.legend()
