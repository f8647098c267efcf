"""Figures for people, in one style: PNG, readable at the width of a README, safe for the colour-blind.

Figures about sets of samples beside real images: coverage, classes, and classes asked for against classes seen."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, PercentFormatter, StrMethodFormatter

from ddpm.plots.numbers import measured, number, percent, supported
from ddpm.plots.style import BLUE, GRAY, ORANGE, PALETTE, figure


def comparison(path: Path, rows: Sequence[dict], floor: float, n: int) -> None:
    """Quality beside cost. rows: sampler, fid, fid_sd (or None), accuracy (or None), nfe; floor: FID of n real images."""
    spread = [row["fid_sd"] for row in rows]
    real = {"sampler": "real images", "fid": floor}
    panels = [
        ("fid", "{x:g}", f"FID in the judge's features,\nn = {n:,} (lower is better)",
         [*map(measured, (row["fid"] for row in rows), spread), supported(floor, spread[0])]),
        ("accuracy", "", "Samples seen as the class\nasked for (higher is better)", [percent(row["accuracy"]) for row in rows]),
        ("nfe", "{x:,.0f}", "Network evaluations\nper sample (lower is better)", [number(row["nfe"]) for row in rows]),
    ]  # fmt: skip
    panels = [panel for panel in panels if rows[0][panel[0]] is not None]
    with figure(path, len(panels), 9, 2.9) as axes:
        for ax, (key, form, title, texts) in zip(axes, panels, strict=True):
            bars = [*rows, real] if key == "fid" else rows
            values = [bar[key] for bar in bars]
            error = [sd or 0 for sd in [*spread, None]] if key == "fid" and any(spread) else None
            drawn = ax.bar(
                [bar["sampler"] for bar in bars], values, color=(BLUE, ORANGE, GRAY)[: len(bars)], width=0.6, yerr=error
            )
            # A value and its spread side by side are wider than a bar.
            ax.bar_label(drawn, [text.replace(" ± ", "\n± ") for text in texts], padding=2)
            ax.set_title(title)
            ax.set_ylim(0, max(values) * (1.35 if error else 1.15))
            ax.grid(axis="x", visible=False)
            ax.yaxis.set_major_formatter(PercentFormatter(1) if key == "accuracy" else StrMethodFormatter(form))


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
        _draw_losses(ax, loss, validation)
        ax.set(ylabel="weighted loss", title="Training (lower is better)")


def loss_by_time(path: Path, quarters: dict[str, pd.DataFrame]) -> None:
    """Loss over optimizer steps, a line for each part of t. quarters: title -> frame of step and, last, the loss."""
    with figure(path, 1, 6.5, 3.4) as (ax,):
        for (title, frame), style, colour in zip(quarters.items(), ("-", "--", "-.", ":"), PALETTE, strict=False):
            ax.plot(frame.step, frame.iloc[:, -1], style, color=colour, linewidth=1.3, label=title)
        ax.set(
            xlabel="optimizer step", ylabel="weighted loss", yscale="log", title="Training loss by noise level (lower is better)"
        )
        _plain_log_axis(ax)
        ax.legend(title="t / T", loc="upper left", bbox_to_anchor=(1, 1))


def training_curves(path: Path, history: Sequence[dict], speed: Sequence[dict]) -> None:
    """Loss, gradient norm and throughput over optimizer steps. history: rows with step and some of loss, validation_loss,
    gradient_norm; speed: rows with step and images_per_second."""
    rows, fast = pd.DataFrame(history), pd.DataFrame(speed)
    rows = rows.reindex(columns=["step", "loss", "validation_loss", "gradient_norm"])
    with figure(path, 3, 12, 3.2) as (left, middle, right):
        _draw_losses(left, rows.dropna(subset="loss"), rows.dropna(subset="validation_loss"))
        left.set(title="Weighted loss (lower is better)")
        norms = rows.dropna(subset="gradient_norm")
        middle.plot(norms.step, norms.gradient_norm, color=BLUE, linewidth=1)
        middle.set(xlabel="optimizer step", title="Gradient norm, before clipping", ylim=(0, None))
        right.plot(fast.step, fast.images_per_second, color=BLUE, linewidth=1)
        right.set(xlabel="optimizer step", title="Training images per second", ylim=(0, None))


def _draw_losses(ax: Axes, loss: pd.DataFrame, validation: pd.DataFrame) -> None:
    ax.plot(loss.step, loss.loss, color=BLUE, linewidth=1, label="training")
    ax.plot(validation.step, validation.validation_loss, "o-", color=ORANGE, markersize=4, label="test images, EMA weights")
    ax.set(xlabel="optimizer step", yscale="log")
    _plain_log_axis(ax)
    ax.legend()


def _plain_log_axis(ax: Axes) -> None:
    # The loss spans less than a decade: plain numbers, and as many of them as the axis has room for.
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def noise_schedules(path: Path, curves: dict[str, tuple[np.ndarray, np.ndarray]], chosen: str) -> None:
    """alpha_bar and log-SNR of every schedule over t / T, the chosen one thicker. curves: (alpha_bar, log_snr), each (T,)."""
    with figure(path, 2, 9, 3.4) as (left, right):
        for (name, (alpha_bar, log_snr)), colour in zip(curves.items(), PALETTE, strict=False):
            time = np.arange(1, len(alpha_bar) + 1) / len(alpha_bar)
            width = 2.6 if name == chosen else 1.2
            left.plot(time, alpha_bar, color=colour, linewidth=width)
            right.plot(time, log_snr, color=colour, linewidth=width, label=f"{name} (chosen)" if name == chosen else name)
        left.set(xlabel="t / T", title="alpha_bar: share of the image's variance that is left")
        right.set(xlabel="t / T", title="log SNR: 0 is as much noise as image", ylim=(-14, 14))
        right.legend(fontsize=8, loc="upper right")


def bits_over_t(path: Path, level: np.ndarray, curves: dict[str, np.ndarray]) -> None:
    """Bits per dimension of single steps over their level, the decoder at level 1. level, and each curve, are (M + 1,)."""
    with figure(path, 1, 6.5, 3.4) as (ax,):
        for (name, bits), colour in zip(curves.items(), PALETTE, strict=False):
            ax.plot(level, bits, color=colour, label=f"{name} variance")
        ax.set(xlabel="level", ylabel="bits per dimension", title="The likelihood bound, step by step")
        ax.set(xscale="log", yscale="log")
        ax.legend()


def fid_over_nfe(path: Path, frame: pd.DataFrame, floor: float, n: int) -> None:
    """FID over network evaluations, a line per sampler. frame: method, budget, nfe, fid; floor: FID of n real images."""
    styles = ["o-", "s-", "^-", "D-", "o--", "s--", "^--", "D--", "v-", "v--"]
    with figure(path, 1, 9, 4.6) as (ax,):
        for (name, part), style, colour in zip(frame.groupby("method", sort=False), styles, PALETTE, strict=False):
            ax.plot(part.nfe, part.fid, style, color=colour, label=name, markersize=5)
        ax.axhline(floor, color=GRAY, linewidth=1.5, linestyle=":", label="real images")
        ax.set(xscale="log", yscale="log", xlabel="network evaluations per sample", ylabel=f"FID, n = {n:,}")
        ax.set_title("Quality over cost, by sampler (lower left is better)")
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        ax.set_xticks(sorted(frame.budget.unique()))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def fid_over_width(path: Path, frame: pd.DataFrame, levels: dict[str, float], n: int) -> None:
    """FID over EMA width beside the FID of others, as lines across. frame: width, fid, fid_sd (NaN: none), and may be empty."""
    with figure(path, 1, 6.5, 3.6) as (ax,):
        for (name, fid), colour, style in zip(levels.items(), (ORANGE, GRAY), ("--", ":"), strict=True):
            ax.axhline(fid, color=colour, linewidth=1.5, linestyle=style, label=name)
        ax.set(xlabel="EMA width (standard deviation as a share of the training)", ylabel=f"FID, n = {n:,}")
        ax.set_title("One training, every EMA width (lower is better)")
        if len(frame):
            error = frame.fid_sd if frame.fid_sd.notna().all() else None
            ax.errorbar(frame.width, frame.fid, error, fmt="o-", color=BLUE, markersize=5, capsize=3, label="rebuilt EMA")
            ax.set_xscale("log")
            ax.set_xticks(frame.width, [f"{width:g}" for width in frame.width])
            ax.xaxis.set_minor_locator(NullLocator())
            values = [*frame.fid, *levels.values()]
            if max(values) > 5 * min(values):
                ax.set_yscale("log")
                ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                ax.yaxis.set_minor_formatter(NullFormatter())
        else:
            ax.text(0.5, 0.5, "no widths to compare", color=GRAY, ha="center", transform=ax.transAxes)
            ax.set_xticks([])
        ax.legend()


REAL = "real test images"
COLOURS = (BLUE, ORANGE, GRAY)
# Above these a figure of README width has no room: for every class name, for a number in each cell, for letters side by side.
MAX_NAMES, MAX_NUMBERS, MAX_LETTERS = 30, 12, 90


def coverage_bars(path: Path, scores: dict[str, dict[str, float]], n: int) -> None:
    """Precision, recall, density and coverage of sets of images. scores: title -> {score: value}, real images last."""
    names = list(next(iter(scores.values())))
    with figure(path, 1, 9, 3.4) as (ax,):
        drawn = _grouped_bars(ax, {title: [of[name] for name in names] for title, of in scores.items()})
        for bars, of in zip(drawn, scores.values(), strict=True):
            ax.bar_label(bars, [f"{of[name]:.2f}" for name in names], padding=2, fontsize=9)
        ax.set_xticks(range(len(names)), names)
        ax.set(
            ylabel=f"score in the judge's features, n = {n:,}",
            ylim=(0, 1.12 * max(1, *(value for of in scores.values() for value in of.values()))),
        )
        ax.set_title("Are samples realistic (precision, density), and is everything drawn (recall, coverage)?")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))


def class_histogram(path: Path, seen: dict[str, np.ndarray], names: Sequence[str]) -> None:
    """Share of images by the class that the judge sees. seen: title -> class (N,), real images last."""
    with figure(path, 1, 9, 3.4) as (ax,):
        shares = {title: np.bincount(classes, minlength=len(names)) / len(classes) for title, classes in seen.items()}
        if len(names) > MAX_NAMES:
            for (title, values), colour in zip(shares.items(), COLOURS, strict=False):
                ax.plot(values, drawstyle="steps-mid", color=colour, linewidth=1.2, label=title)
        else:
            _grouped_bars(ax, shares)
        _name_classes(ax, names, MAX_LETTERS)
        ax.set(xlabel="class that the judge sees", ylabel="share of the images", title="Classes of samples and of test images")
        ax.set_ylim(0, None)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if len(names) <= MAX_NAMES else 1))
        # Beside the bars, which may be equally high everywhere.
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))


def confusion(path: Path, panels: dict[str, tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> None:
    """Of the images of each class, the percentage that the judge sees as each. panels: title -> (asked (N,), seen (N,))."""
    room = MAX_LETTERS // 3
    height = 3.6 + (0.09 * max(map(len, names)) if _stand_upright(names, room) else 0)
    with figure(path, len(panels), 3 * len(panels), height) as axes:
        for ax, (title, (asked, seen)) in zip(axes, panels.items(), strict=True):
            counts = np.zeros((len(names), len(names)))
            np.add.at(counts, (asked, seen), 1)
            shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
            ax.imshow(shares, cmap="Blues", vmin=0, vmax=100)
            ax.set(title=f"{title}:\n{np.mean(asked == seen):.1%} as asked", xlabel="class seen")
            ax.grid(visible=False)
            _name_classes(ax, names, room)
            if len(names) <= MAX_NAMES:
                # One name for each row serves all panels.
                ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names))
            if len(names) <= MAX_NUMBERS:
                for i, j in zip(*np.nonzero(counts), strict=True):
                    ink = "white" if shares[i, j] > 50 else "black"
                    ax.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", fontsize=8, color=ink)
        axes[0].set_ylabel("class asked for")


def _grouped_bars(ax: Axes, groups: dict[str, Sequence[float]]) -> list:
    """A group of bars, one for each entry, around every whole number."""
    width = 0.8 / len(groups)
    drawn = []
    for k, ((title, values), colour) in enumerate(zip(groups.items(), COLOURS, strict=False)):
        places = np.arange(len(values)) + (k - (len(groups) - 1) / 2) * width
        drawn.append(ax.bar(places, values, width * 0.94, color=colour, label=title))
    ax.grid(axis="x", visible=False)
    return drawn


def _name_classes(ax: Axes, names: Sequence[str], letters: int) -> None:
    """Class names below an axis with room for so many letters side by side; numbers where there are too many classes."""
    if len(names) > MAX_NAMES:
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return
    ax.set_xticks(range(len(names)), names, rotation=90 if _stand_upright(names, letters) else 0)


def _stand_upright(names: Sequence[str], letters: int) -> bool:
    return len(names) <= MAX_NAMES and len(names) * (max(map(len, names)) + 1) > letters
