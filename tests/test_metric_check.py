"""The check of the metrics: its images are damaged as stated, and it fails where a metric does not respond."""

import copy

import numpy as np
import pytest
from PIL import Image

from ddpm.data.prepared import Split
from tests.tools import metric_check
from tests.tools.metric_check import COLLAPSED, COPIES, HALF, NOISY, REAL, ROWS, Pool, checks

pytestmark = pytest.mark.slow

N = 100


@pytest.fixture
def pool():
    rng = np.random.default_rng(0)
    held_out, train = (rng.integers(60, 190, (count, 8, 8, 1), np.uint8) for count in (400, 900))
    return Pool(Split(held_out, np.arange(400) % 10), Split(train, np.arange(900) % 10), 3 * N, np.random.default_rng(1))


def test_rows_have_images_of_the_data(pool):
    for name, make in ROWS.items():
        images = make(pool)
        assert (images.shape, images.dtype) == ((3 * N, 8, 8, 1), np.uint8), name


@pytest.mark.parametrize("sd", [0.05, 0.1])
def test_noisy_has_its_standard_deviation(pool, sd):
    added = metric_check.noisy(pool, sd).astype(float) - pool.real()
    assert added.std() == pytest.approx(255 * sd, rel=0.03)
    assert abs(added.mean()) < 0.5


def test_blurred_keeps_the_mean_and_removes_detail(pool):
    flat = pool._replace(held_out=Split(np.full((3 * N, 8, 8, 1), 77, np.uint8), pool.held_out.labels))
    assert (metric_check.blurred(flat) == 77).all()
    blurred = metric_check.blurred(pool)
    assert blurred.mean() == pytest.approx(pool.real().mean(), abs=0.5)
    assert blurred.std() < 0.6 * pool.real().std()


def copied(images, train):
    """Share of images that are training images."""
    known = {image.tobytes() for image in train}
    return np.mean([image.tobytes() in known for image in images])


def test_copies_are_copies_and_collapsed_is_a_tenth_of_a_set(pool):
    train = pool.train.images
    assert copied(ROWS[COPIES](pool), train) == 1
    assert copied(ROWS[REAL](pool), train) == 0
    half = ROWS[HALF](pool)
    assert [copied(half[i * N : (i + 1) * N], train) for i in range(3)] == [0.5] * 3, "in every set"
    collapsed = ROWS[COLLAPSED](pool)
    assert [len(np.unique(collapsed[i * N : (i + 1) * N], axis=0)) for i in range(3)] == [N // 10] * 3
    labels = {image.tobytes(): label for image, label in zip(*pool.held_out, strict=True)}
    assert 0 not in {labels[image.tobytes()] for image in metric_check.without_a_class(pool)}


def sound():
    """Scores of metrics that respond as they should."""
    row = {
        "classifier": {"fid": 0.04, "fid_sd": 0.01, "fid_floor": 0.041, "fid_excess": -0.001, "kid": 0.0, "precision": 0.9,
                       "recall": 0.88, "density": 1.0, "coverage": 0.97},
        "memorization": {"nn_auc": 0.5, "near_copies": 0.0, "authenticity": 0.6},
        "classes": {"tv": 0.04, "tv_floor": 0.038},
    }  # fmt: skip
    scores = {name: copy.deepcopy(row) for name in ROWS}
    for k, name in enumerate(NOISY):
        scores[name]["classifier"] |= {"fid": 1.0 + k, "kid": 0.1 + k, "precision": 0.5 - k / 10, "coverage": 0.5 - k / 10}
    scores[metric_check.BLURRED]["classifier"]["fid"] = 2.0
    scores[COLLAPSED]["classifier"] |= {"fid": 0.4, "recall": 0.0, "coverage": 0.3}
    scores[metric_check.CLASSLESS]["classifier"]["fid"] = 0.5
    scores[metric_check.CLASSLESS]["classes"]["tv"] = 0.1
    scores[COPIES]["memorization"] = {"nn_auc": 0.0, "near_copies": 1.0, "authenticity": 0.0}
    scores[HALF]["memorization"] = {"nn_auc": 0.25, "near_copies": 0.5, "authenticity": 0.3}
    return scores


def test_checks_pass_for_sound_metrics():
    assert [check.sentence for check in checks(sound(), N) if not check.holds] == []


STUCK = [
    (REAL, "classifier.fid_excess", 0.05, "real images have the FID of the floor"),
    (NOISY[1], "classifier.fid", 0.9, "FID rises with the noise"),
    (NOISY[3], "classifier.kid", 0.2, "KID rises with the noise"),
    (COLLAPSED, "classifier.precision", 0.7, "a collapse keeps precision above .8"),
    (COLLAPSED, "classifier.recall", 0.4, "a collapse brings recall below .3"),
    (COLLAPSED, "classifier.coverage", 0.6, "a collapse takes half of coverage"),
    (metric_check.CLASSLESS, "classes.tv", 0.04, "a missing class shows in the histogram"),
    (COPIES, "memorization.nn_auc", 0.4, "nn_auc of copies is near 0"),
    (HALF, "memorization.nn_auc", 0.5, "nn_auc of a half of copies is half that of real images"),
    (COPIES, "memorization.near_copies", 0.2, "copies are near copies"),
    (COPIES, "memorization.authenticity", 0.5, "copies are not authentic"),
]


def test_checks_name_a_metric_that_does_not_respond():
    for row, key, value, sentence in STUCK:
        scores = sound()
        group, name = key.split(".")
        scores[row][group][name] = value
        (wrong,) = [check.sentence for check in checks(scores, N) if not check.holds]
        assert wrong.startswith(sentence)


@pytest.mark.slow
def test_main_passes_on_digits(workspace, monkeypatch, capsys):
    """With a classifier of few epochs; then with copies that are none, which must not pass."""
    arguments = ["--dataset", "digits", "--epochs", "6", "--out", "check/digits.md"]
    metric_check.main(arguments)
    page = (workspace / "check/digits.md").read_text()
    assert all(f"| {name} | 100 | " in page for name in ROWS)
    assert "**NO**" not in page
    with Image.open(workspace / "check/digits.png") as picture:
        assert picture.height > 40 * len(ROWS)
    monkeypatch.setitem(ROWS, COPIES, Pool.real)
    with pytest.raises(SystemExit) as ended:
        metric_check.main(arguments)
    assert "failed: nn_auc of copies is near 0" in str(ended.value.code)
    assert "- **NO**: nn_auc of copies is near 0" in (workspace / "check/digits.md").read_text()
