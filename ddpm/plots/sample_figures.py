"""Draws figures that compare sets of samples with real images: coverage, classes and confusion matrices."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ddpm.plots.fonts import drawable
from ddpm.plots.image_grid import short
from ddpm.plots.style import BLUE, GRAY, ORANGE, PALETTE, figure, plain, with_styles

REAL = "real test images"
COLOURS = (BLUE, ORANGE, GRAY, *PALETTE[2:])
# Limits of a figure as wide as a README: class names on an axis, classes with a number in each cell, letters side by side.
MAX_NAMES, MAX_NUMBERS, MAX_LETTERS = 30, 12, 90
MAX_NAME = 24  # letters of a class name


def coverage_bars(path: Path, scores: dict[str, dict[str, float]], n: int) -> None:
    """Draws precision, recall, density and coverage as bars. scores: title -> {score: value}, real images last."""
    names = list(next(iter(scores.values())))
    with figure(path, 1, 9, 3.4) as (ax,):
        drawn = _grouped_bars(ax, {title: list(values.values()) for title, values in scores.items()})
        for bars, values in zip(drawn, scores.values(), strict=True):
            ax.bar_label(bars, [f"{value:.2f}" for value in values.values()], padding=2, fontsize=9)
        ax.set_xticks(range(len(names)), names)
        ax.set(
            ylabel=f"score in the classifier's features, n = {n:,}",
            ylim=(0, 1.12 * max(1, *(value for values in scores.values() for value in values.values()))),
        )
        ax.set_title("Quality (precision, density) and diversity (recall, coverage) of samples")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))


def class_histogram(path: Path, predicted: dict[str, np.ndarray], names: Sequence[str]) -> None:
    """Draws the share of images by predicted class. predicted: title -> class (N,), real images last."""
    names = _short(names)
    with figure(path, 1, 9, 3.4 + _extra_height(names, MAX_LETTERS), names) as (ax,):
        shares = {title: np.bincount(classes, minlength=len(names)) / len(classes) for title, classes in predicted.items()}
        if len(names) > MAX_NAMES:
            for (title, values), colour in with_styles(shares.items(), COLOURS):
                ax.plot(values, drawstyle="steps-mid", color=colour, linewidth=1.2, label=title)
        else:
            _grouped_bars(ax, shares)
        _name_classes(ax, names, MAX_LETTERS)
        ax.set(xlabel="predicted class", ylabel="share of the images", title="Classes of samples and of test images")
        ax.set_ylim(0, None)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if len(names) <= MAX_NAMES else 1))
        # Outside the axes, where bars of any height leave room for it.
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))


def confusion(path: Path, panels: dict[str, tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> None:
    """Draws a confusion matrix in percent for each set. panels: title -> (requested class (N,), predicted class (N,))."""
    names, room = _short(names), MAX_LETTERS // 3
    with figure(path, len(panels), 3 * len(panels), 3.6 + _extra_height(names, room), names) as axes:
        for ax, (title, (requested, predicted)) in zip(axes, panels.items(), strict=True):
            counts = np.zeros((len(names), len(names)))
            np.add.at(counts, (requested, predicted), 1)
            shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
            ax.imshow(shares, cmap="Blues", vmin=0, vmax=100)
            ax.set(title=f"{title}:\n{np.mean(requested == predicted):.1%} accuracy", xlabel="predicted class")
            ax.grid(visible=False)
            _name_classes(ax, names, room)
            if len(names) <= MAX_NAMES:
                # The first panel names the rows of all panels.
                ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names))
            if len(names) <= MAX_NUMBERS:
                for i, j in zip(*np.nonzero(counts), strict=True):
                    ink = "white" if shares[i, j] > 50 else "black"
                    ax.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", fontsize=8, color=ink)
        axes[0].set_ylabel("requested class")


def _grouped_bars(ax: Axes, groups: dict[str, Sequence[float]]) -> list:
    """Draws a group of bars, one for each entry, around every whole number."""
    width = 0.8 / len(groups)
    drawn = []
    for k, ((title, values), colour) in enumerate(with_styles(groups.items(), COLOURS)):
        places = np.arange(len(values)) + (k - (len(groups) - 1) / 2) * width
        drawn.append(ax.bar(places, values, width * 0.94, color=colour, label=title))
    ax.grid(axis="x", visible=False)
    return drawn


def _name_classes(ax: Axes, names: Sequence[str], letters: int) -> None:
    """Writes class names below an axis with room for `letters` side by side, or numbers if there are too many classes."""
    if len(names) > MAX_NAMES:
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return
    ax.set_xticks(range(len(names)), names, rotation=90 if _stand_upright(names, letters) else 0)


def _short(names: Sequence[str]) -> list[str]:
    return plain(short(drawable(name), MAX_NAME) for name in names)


def _width(name: str) -> int:
    """Returns the width of a name in letters; Chinese, Japanese and Korean ones are twice as wide as others."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in name)


def _extra_height(names: Sequence[str], letters: int) -> float:
    """Returns the inches that upright names need below an axis."""
    return 0.09 * max(map(_width, names)) if _stand_upright(names, letters) else 0


def _stand_upright(names: Sequence[str], letters: int) -> bool:
    return len(names) <= MAX_NAMES and len(names) * (max(map(_width, names)) + 1) > letters
