"""Figures, image grids and numbers: drawings show their data."""

from contextlib import contextmanager, nullcontext

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ddpm.plots import figures, image_grid, sample_figures, style
from ddpm.plots.numbers import measured, number, percent, share_error, share_of, supported, table
from ddpm.plots.style import with_styles


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_class_grid_has_a_row_per_class(tmp_path):
    labels = np.arange(40) % 10
    images = np.broadcast_to((labels * 20 + 10).astype(np.uint8)[:, None, None, None], (40, 8, 8, 1)).copy()
    path = tmp_path / "grid.png"
    image_grid.class_grid(path, images, labels, [f"class {i}" for i in range(10)], columns=3, tile=16)
    picture = read(path)
    assert picture.ndim == 2, "gray images are stored as a gray PNG"
    right = picture[:, -image_grid.MARGIN - image_grid.GAP - 8]
    brightness = [value for i, value in enumerate(right) if i == 0 or value != right[i - 1]]
    assert [int(value) for value in brightness if value != 255] == [20 * i + 10 for i in range(10)]
    assert all((picture == 20 * i + 10).sum() >= 3 * 16 * 16 for i in range(10))


def test_to_picture_enlarges_by_a_whole_factor():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    picture = np.asarray(image_grid.to_picture(image, tile=40))
    assert picture.shape == (40, 40, 3)
    assert (picture[::5, ::5, 0] == image[..., 0]).all()
    assert np.asarray(image_grid.to_picture(np.zeros((64, 64, 3), np.uint8), tile=48)).shape == (64, 64, 3)


def test_denoising_strip_runs_from_noise_to_image(tmp_path):
    x = np.zeros((5, 2, 8, 8, 1), np.uint8)
    x[-1] = 77
    path = tmp_path / "strip.png"
    image_grid.denoising_strip(path, x, x, np.array([10, 7, 5, 2, 0]), tile=16)
    picture = read(path)
    columns = np.flatnonzero((picture == 77).any(axis=0))
    assert (picture == 77).sum() >= 4 * 16 * 16, "x_t and x0 of both samples"
    assert columns.min() > picture.shape[1] * 0.6, "the image is at the right"


def test_comparison_leaves_out_missing_accuracy(tmp_path):
    shapes = []
    for accuracy in (None, 0.9):
        common = {"fid": 0.1, "fid_sd": None, "accuracy": accuracy}
        rows = [{"sampler": sampler, "nfe": nfe, **common} for sampler, nfe in (("DDPM", 1000), ("DDIM", 50))]
        figures.comparison(tmp_path / "a.png", rows, 0.08, 500)
        shapes.append(read(tmp_path / "a.png").shape)
    assert min(shapes[0][:2]) > 200
    assert shapes[1][1] > 900


@pytest.mark.parametrize("sd", [None, 0.001, 0.05, 0.3])
def test_comparison_labels_are_below_the_title(tmp_path, monkeypatch, sd):
    kept = []

    @contextmanager
    def kept_figure(*arguments):
        with style.figure(*arguments) as axes:
            kept.extend(axes)
            yield axes

    monkeypatch.setattr(figures, "figure", kept_figure)
    rows = [{"sampler": name, "nfe": 50, "fid": 0.1, "fid_sd": sd, "accuracy": 0.9} for name in ("DDPM", "DDIM")]
    figures.comparison(tmp_path / "a.png", rows, 0.08, 500)
    for ax in kept:
        assert max(label.get_window_extent().y1 for label in ax.texts) < ax.title.get_window_extent().y0


def blue(picture):
    """Returns where a picture has the colour of the first set of images."""
    return (picture[..., :3] == [0x00, 0x72, 0xB2]).all(-1)


def test_with_styles_repeats_styles_and_loses_no_series():
    assert [*with_styles("abc", "xy", "z")] == [("a", "x", "z"), ("b", "y", "z"), ("c", "x", "z")]


def test_fid_over_nfe_draws_every_sampler(tmp_path, monkeypatch):
    """Twelve samplers, more than there are colours or line styles."""
    rows = [{"method": f"sampler {k}", "budget": b, "nfe": b, "fid": k + 1 + 1 / b} for k in range(12) for b in (5, 10)]
    axes = [Figure().subplots()]
    monkeypatch.setattr(figures, "figure", lambda *_: nullcontext(axes))
    figures.fid_over_nfe(tmp_path / "fid.png", pd.DataFrame(rows), 0.5, 500)
    lines = [line for line in axes[0].lines if line.get_label().startswith("sampler")]
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 12


def test_coverage_bars_are_as_high_as_the_scores(tmp_path):
    """The first bar, precision, has half the height of the second."""
    path, real = tmp_path / "coverage.png", {"precision": 1.0, "recall": 1.0}
    sample_figures.coverage_bars(path, {"DDPM": {"precision": 0.4, "recall": 0.8}, sample_figures.REAL: real}, 500)
    drawn = blue(read(path))
    columns = np.flatnonzero(drawn.sum(0) > 20)
    heights = sorted({int(drawn[:, column].sum()) for column in columns if column < drawn.shape[1] * 0.75})
    assert heights[-1] / heights[0] == pytest.approx(2, rel=0.05)


def test_class_histogram_counts_all_names(tmp_path):
    path, sets = tmp_path / "classes.png", {"DDPM": np.array([0, 0, 2]), sample_figures.REAL: np.array([0, 1, 2])}
    sample_figures.class_histogram(path, sets, ["cat", "dog", "horse"])
    drawn = blue(read(path))
    # Left of the legend are two bars: no image of the set has the second class.
    filled = (drawn.sum(0) > 20)[: int(drawn.shape[1] * 0.75)]
    assert (np.diff(filled.astype(int)) == 1).sum() == 2


@pytest.mark.parametrize("classes", [3, 40])
def test_confusion_has_a_panel_per_set(tmp_path, classes):
    labels = np.arange(200) % classes
    names = [rf"class $\frac{{{i}$" for i in range(classes)]  # no formula
    for panels in (1, 2, 3):
        sample_figures.confusion(tmp_path / f"{panels}.png", {f"set {i}": (labels, labels) for i in range(panels)}, names)
        # All predictions are correct, so the diagonal has the darkest colour.
        darkest = (read(tmp_path / f"{panels}.png")[..., :3] == [0x08, 0x30, 0x6B]).all(-1)
        assert darkest.any()


def test_neighbours_are_below_their_samples(tmp_path):
    pairs = np.zeros((2, 3, 8, 8, 1), np.uint8)
    pairs[0], pairs[1] = 77, 99
    image_grid.neighbours(tmp_path / "a.png", pairs, np.array([0.31, 0.4, 0.5]), tile=40)
    picture = read(tmp_path / "a.png")
    sample, nearest = (np.flatnonzero((picture == value).sum(1) >= 3 * 40) for value in (77, 99))
    assert sample.max() < nearest.min()
    assert (picture == 77).sum() >= 3 * 40 * 40


@pytest.mark.parametrize(
    ("value", "sd", "text"),
    [(0.087123, 0.00421, "0.087 ± 0.004"), (0.087123, 0.00131, "0.0871 ± 0.0013"), (31.42, 1.21, "31.4 ± 1.2"),
     (1234.5, 56.0, "1,230 ± 60"), (-0.0003, 0.0041, "0.000 ± 0.004"), (0.1, 3.0, "0 ± 3"), (7.1594, None, "7.2"),
     (0.98312, None, "0.98"), (0.0804, None, "0.080"), (154.2, None, "150"), (0.0, None, "0.0"), (0.5, 0.0, "0.50"),
     (None, None, "-")],
)  # fmt: skip
def test_measured_has_the_digits_of_its_spread(value, sd, text):
    assert measured(value, sd) == text


def test_share_of_has_the_standard_error_of_counting():
    assert share_of(0.99, 1500) == "99.0 ± 0.3%"
    assert share_of(0.0, 500) == "0.0 ± 0.2%", "0 of 500 does not prove 0"
    assert share_of(None, 500) == "-"
    assert share_error(0.5, 100) == pytest.approx(0.05)
    assert supported(0.08471, 0.0042) == "0.085"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.078593, "0.0786"), (7.1594, "7.16"), (54.783, "54.8"), (186.389, "186"), (9127.4, "9,130"), (1000, "1,000"),
     (0, "0"), (-0.0061077, "-0.00611"), (1.23e-7, "1.2e-07"), (None, "-")],
)  # fmt: skip
def test_number_has_three_digits(value, text):
    assert number(value) == text


def test_table_is_markdown():
    assert percent(0.9876) == "98.8%"
    assert percent(None) == "-"
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n| :-- | --: |\n| x | 1 |"
    assert table(["a", "b"], [["x", "y"]], text=(0, 1)).splitlines()[1] == "| :-- | :-- |"
