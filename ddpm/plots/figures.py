"""Draws figures of scores, losses and noise schedules as PNG files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, PercentFormatter, StrMethodFormatter

from ddpm.plots.numbers import measured, number, percent, supported
from ddpm.plots.style import BLUE, GRAY, ORANGE, PALETTE, figure, with_styles

ACCURACY = "Samples classified as the\nrequested class (higher is better)"
# Eleven styles and ten colours: their combination repeats only after 110 lines.
LINE_STYLES = ("o-", "s-", "^-", "D-", "o--", "s--", "^--", "D--", "v-", "v--", "o:")


def comparison(path: Path, rows: Sequence[dict], floor: float | None, n: int) -> None:
    """Draws FID, accuracy and number of network evaluations as bars.

    rows: {sampler, fid, fid_sd, accuracy, nfe}, one for each sampler; fid, fid_sd and accuracy may be None.
    floor: FID of n real images.
    """
    spread = [row["fid_sd"] for row in rows]
    real = {"sampler": "real images", "fid": floor}
    fids = [
        *map(measured, (row["fid"] for row in rows), spread),
        measured(floor) if floor is None else supported(floor, spread[0]),
    ]
    panels = [
        ("fid", "{x:g}", f"FID in the classifier's features,\nn = {n:,} (lower is better)", fids),
        ("accuracy", "", ACCURACY, [percent(row["accuracy"]) for row in rows]),
        ("nfe", "{x:,.0f}", "Network evaluations\nper sample (lower is better)", [number(row["nfe"]) for row in rows]),
    ]
    panels = [panel for panel in panels if rows[0][panel[0]] is not None]
    with figure(path, len(panels), 9, 2.9) as axes:
        for ax, (key, form, title, texts) in zip(axes, panels, strict=True):
            bars = [*rows, real] if key == "fid" else rows
            values = [bar[key] for bar in bars]
            error = [sd or 0 for sd in [*spread, None]] if key == "fid" and any(spread) else None
            drawn = ax.bar(
                [bar["sampler"] for bar in bars], values, color=(BLUE, ORANGE, GRAY)[: len(bars)], width=0.6, yerr=error
            )
            # A value and its standard deviation in one line are wider than a bar.
            ax.bar_label(drawn, [text.replace(" ± ", "\n± ") for text in texts], padding=2)
            ax.set_title(title)
            # Labels stand on the error bars; those with a standard deviation have two lines.
            ax.set_ylim(0, max(np.add(values, error or 0)) * (1.3 if error else 1.15))
            ax.grid(axis="x", visible=False)
            ax.yaxis.set_major_formatter(PercentFormatter(1) if key == "accuracy" else StrMethodFormatter(form))


def psnr_over_t(path: Path, curve: pd.DataFrame) -> None:
    """Draws the PSNR of one-step denoising over the noise level. curve: columns fraction (t / T), method and psnr."""
    names = {"network": "the network", "wiener": "Wiener filter", "zero": "no denoising"}
    with figure(path, 1, 6.5, 3.4) as (ax,):
        for (method, name), colour, style in zip(names.items(), (BLUE, ORANGE, GRAY), ("o-", "s--", "^:"), strict=True):
            part = curve[curve.method == method]
            ax.plot(part.fraction, part.psnr, style, color=colour, label=name)
        ax.set(xlabel="noise level t / T", ylabel="PSNR in dB", title="One-step denoising of test images (higher is better)")
        ax.legend()


def loss_curve(path: Path, loss: pd.DataFrame, validation: pd.DataFrame) -> None:
    """Draws training and validation loss over optimizer steps. Columns: step, and loss or validation_loss."""
    with figure(path, 1, 6.5, 3.4) as (ax,):
        _draw_losses(ax, loss, validation)
        ax.set(ylabel="weighted loss", title="Training (lower is better)")


def loss_by_time(path: Path, quarters: dict[str, pd.DataFrame]) -> None:
    """Draws the loss over optimizer steps, a line for each part of t. quarters: title -> frame of step and, last, the loss."""
    with figure(path, 1, 6.5, 3.4) as (ax,):
        for (title, frame), style, colour in with_styles(quarters.items(), ("-", "--", "-.", ":"), PALETTE):
            ax.plot(frame.step, frame.iloc[:, -1], style, color=colour, linewidth=1.3, label=title)
        ax.set(
            xlabel="optimizer step", ylabel="weighted loss", yscale="log", title="Training loss by noise level (lower is better)"
        )
        _plain_log_axis(ax)
        ax.legend(title="t / T", loc="upper left", bbox_to_anchor=(1, 1))


def fid_over_steps(path: Path, frame: pd.DataFrame) -> None:
    """Draws FID over optimizer steps. frame: columns method (samples, then real images), step, fid and fid_sd (NaN: unknown)."""
    with figure(path, 1, 6.5, 3.4) as (ax,):
        for (name, part), style, colour in with_styles(frame.groupby("method", sort=False), ("o-", ":"), (BLUE, GRAY)):
            error = part.fid_sd if part.fid_sd.notna().all() else None
            ax.errorbar(part.step, part.fid, error, fmt=style, color=colour, markersize=5, capsize=3, label=name)
        ax.set(xlabel="optimizer step", ylabel="FID in the classifier's features", yscale="log")
        ax.set_title("Samples over the training (lower is better)")
        _plain_log_axis(ax)
        ax.legend()


def training_curves(path: Path, history: Sequence[dict], speed: Sequence[dict]) -> None:
    """Draws loss, gradient norm and throughput over optimizer steps, and FID where there is any.

    history: rows of step and some of loss, validation_loss, gradient_norm and fid. speed: rows of step and images_per_second.
    """
    rows, fast = pd.DataFrame(history), pd.DataFrame(speed)
    rows = rows.reindex(columns=["step", "loss", "validation_loss", "gradient_norm", "fid"])
    scores = rows.dropna(subset="fid")
    panels = 4 if len(scores) else 3
    with figure(path, panels, 4 * panels, 3.2) as (left, middle, right, *more):
        _draw_losses(left, rows.dropna(subset="loss"), rows.dropna(subset="validation_loss"))
        left.set(title="Weighted loss (lower is better)")
        norms = rows.dropna(subset="gradient_norm")
        middle.plot(norms.step, norms.gradient_norm, color=BLUE, linewidth=1)
        middle.set(xlabel="optimizer step", title="Gradient norm, before clipping", ylim=(0, None))
        right.plot(fast.step, fast.images_per_second, color=BLUE, linewidth=1)
        right.set(xlabel="optimizer step", title="Training images per second", ylim=(0, None))
        for ax in more:
            ax.plot(scores.step, scores.fid, "o-", color=BLUE, markersize=4)
            ax.set(xlabel="optimizer step", title="FID of a few samples (lower is better)", yscale="log")
            _plain_log_axis(ax)


def _draw_losses(ax: Axes, loss: pd.DataFrame, validation: pd.DataFrame) -> None:
    ax.plot(loss.step, loss.loss, color=BLUE, linewidth=1, label="training")
    ax.plot(validation.step, validation.validation_loss, "o-", color=ORANGE, markersize=4, label="test images, EMA weights")
    ax.set(xlabel="optimizer step", yscale="log")
    _plain_log_axis(ax)
    ax.legend()


def _plain_log_axis(ax: Axes, ticks: tuple[int, ...] = (1, 2, 3, 5)) -> None:
    # The values span few decades, so ticks are needed between powers of ten.
    ax.yaxis.set_major_locator(LogLocator(subs=ticks))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def noise_schedules(path: Path, curves: dict[str, tuple[np.ndarray, np.ndarray]], schedule: str) -> None:
    """Draws alpha_bar and log SNR over t / T, those of the schedule in use thicker. curves: (alpha_bar, log_snr), each (T,)."""
    with figure(path, 2, 9, 3.4) as (left, right):
        for (name, (alpha_bar, log_snr)), colour in with_styles(curves.items(), PALETTE):
            time = np.arange(1, len(alpha_bar) + 1) / len(alpha_bar)
            width = 2.6 if name == schedule else 1.2
            left.plot(time, alpha_bar, color=colour, linewidth=width)
            right.plot(time, log_snr, color=colour, linewidth=width, label=f"{name} (in use)" if name == schedule else name)
        left.set(xlabel="t / T", title="alpha_bar: remaining share of the image's variance")
        right.set(xlabel="t / T", title="log SNR: at 0, noise and image are equally strong", ylim=(-14, 14))
        right.legend(fontsize=8, loc="upper right")


def bits_over_t(path: Path, level: np.ndarray, curves: dict[str, np.ndarray]) -> None:
    """Draws the bits per dimension of single steps over the timestep; at 1 is the decoder. level and each curve: (M + 1,)."""
    with figure(path, 1, 6.5, 3.4) as (ax,):
        for (name, bits), colour in with_styles(curves.items(), PALETTE):
            ax.plot(level, bits, color=colour, label=f"{name} variance")
        ax.set(xlabel="timestep t", ylabel="bits per dimension", title="Terms of the likelihood bound by step")
        ax.set(xscale="log", yscale="log")
        ax.legend()


def fid_over_nfe(path: Path, frame: pd.DataFrame, floor: float, n: int) -> None:
    """Draws FID over network evaluations, a line per sampler. frame: method, budget, nfe, fid. floor: FID of n real images."""
    with figure(path, 1, 9, 4.6) as (ax,):
        for (name, part), style, colour in with_styles(frame.groupby("method", sort=False), LINE_STYLES, PALETTE):
            ax.plot(part.nfe, part.fid, style, color=colour, label=name, markersize=5)
        ax.axhline(floor, color=GRAY, linewidth=1.5, linestyle=":", label="real images")
        ax.set(xscale="log", yscale="log", xlabel="network evaluations per sample", ylabel=f"FID, n = {n:,}")
        ax.set_title("Quality over cost, by sampler (lower left is better)")
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        ax.set_xticks(sorted(frame.budget.unique()))
        ax.xaxis.set_minor_formatter(NullFormatter())
        _plain_log_axis(ax, (1, 2, 5))
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def fid_over_width(path: Path, frame: pd.DataFrame, levels: dict[str, float], n: int) -> None:
    """Draws FID over EMA width, and horizontal reference lines.

    frame: columns width, fid and fid_sd (NaN: unknown); may be empty. levels: name -> FID of each reference line.
    """
    with figure(path, 1, 6.5, 3.6) as (ax,):
        for (name, fid), colour, style in zip(levels.items(), (ORANGE, GRAY), ("--", ":"), strict=True):
            ax.axhline(fid, color=colour, linewidth=1.5, linestyle=style, label=name)
        ax.set(xlabel="EMA width (standard deviation as a share of the training)", ylabel=f"FID, n = {n:,}")
        ax.set_title("EMA widths of one training (lower is better)")
        if len(frame):
            error = frame.fid_sd if frame.fid_sd.notna().all() else None
            ax.errorbar(frame.width, frame.fid, error, fmt="o-", color=BLUE, markersize=5, capsize=3, label="rebuilt EMA")
            ax.set_xscale("log")
            ax.set_xticks(frame.width, [f"{width:g}" for width in frame.width])
            ax.xaxis.set_minor_locator(NullLocator())
            values = [*frame.fid, *levels.values()]
            if max(values) > 5 * min(values):
                ax.set_yscale("log")
                _plain_log_axis(ax, (1, 2, 5))
        else:
            ax.text(0.5, 0.5, "no widths to compare", color=GRAY, ha="center", transform=ax.transAxes)
            ax.set_xticks([])
        ax.legend()


GUIDANCE_PANELS = {
    "accuracy": ACCURACY,
    "recall": "Recall: diversity of samples\n(higher is better)",
    "fid": "FID in the classifier's features\n(lower is better)",
}


def guidance_curves(path: Path, frame: pd.DataFrame) -> None:
    """Draws accuracy, recall and FID over the guidance scale. frame: columns method, scale, fid, fid_sd, recall, accuracy."""
    by_method = frame.groupby("method", sort=False)
    panels = {key: title for key, title in GUIDANCE_PANELS.items() if frame[key].notna().any()}
    with figure(path, len(panels), 9, 3.2) as axes:
        for ax, (key, title) in zip(axes, panels.items(), strict=True):
            for (name, part), style, colour in with_styles(by_method, ("o-", "s--"), PALETTE):
                spread = part.fid_sd if key == "fid" and part.fid_sd.notna().all() else None
                ax.errorbar(part.scale, part[key], spread, fmt=style, color=colour, markersize=4, capsize=2, label=name)
            ax.axvline(1, color="#BBBBBB", linewidth=1, linestyle=":")
            ax.set(title=title, xlabel="guidance scale")
            ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}") if key == "fid" else PercentFormatter(1, decimals=0))
            ax.set_xlim(-0.04 * frame.scale.max(), 1.04 * frame.scale.max())
        if frame.method.nunique() > 1:
            axes[0].legend(fontsize=8, loc="lower right")
