"""The Evaluator: what scores of good, noisy and collapsed samples must be, and what a new metric or extractor takes."""

import numpy as np
import pytest
from conftest import input_error
from evaluation_data import CPU, digits_data, first_images, untrained_classifier
from processes import in_processes

from ddpm.evaluation.evaluator import LEVELS, Evaluator, describe_metrics
from ddpm.evaluation.feature_metrics import METRICS, REAL, Metric, set_sizes
from ddpm.evaluation.prdc import MIN_IMAGES
from ddpm.features.extractors import EXTRACTORS, Extractor

RNG = np.random.default_rng(0)
MISSING = {"status": "weights missing"}
COVERAGE = ("precision", "recall", "density", "coverage")


def make_evaluator(samples=500, data=None):
    return Evaluator(data or digits_data(), untrained_classifier(), samples, seed=0, device=CPU)


def test_set_sizes_are_the_largest_that_both_fill():
    assert set_sizes(1000, 300) == (300, 3)
    with input_error("evaluate"):
        set_sizes(1, 300)


class TestEvaluate:
    def test_real_images_reach_the_floor(self):
        data, evaluator = digits_data(), make_evaluator()
        scores = evaluator.evaluate(data.test.images, data.test.labels, "ddpm").scores
        assert list(scores) == ["classifier", "inception", "accuracy", "classes", "memorization", "diversity"]
        features = scores["classifier"]
        assert list(features) == [
            "fid", "fid_floor", "fid_excess", "fid_test", "fid_infinity", "kid", "kid_floor", "is", "is_real", *COVERAGE
        ]  # fmt: skip
        assert features["fid"] == pytest.approx(features["fid_floor"], rel=1e-9)
        assert evaluator.fid_floor == features["fid_floor"]
        assert features["fid_excess"] == pytest.approx(0, abs=1e-12)
        assert features["fid_test"] < 1e-9
        assert features["fid_infinity"] < features["fid"]
        assert features["kid"] == pytest.approx(features["kid_floor"], rel=1e-9)
        assert features["is"] == pytest.approx(features["is_real"], rel=1e-9)
        assert scores["inception"] == MISSING
        real = {key: features[key] for key in COVERAGE}
        assert evaluator.real() == {"classifier": pytest.approx(real), "inception": MISSING}
        assert scores["memorization"]["nn_auc"] == 0.5
        assert scores["diversity"] == {"classifier": 1, **MISSING}

    def test_noise_raises_fid_and_kid(self):
        data, evaluator = digits_data(), make_evaluator()
        noise = RNG.standard_normal(data.test.images.shape)
        noisy = [np.clip(data.test.images + 127.5 * scale * noise, 0, 255).astype(np.uint8) for scale in (0.05, 0.1, 0.2, 0.4)]
        scores = [evaluator.evaluate(images, data.test.labels, "ddpm").scores for images in noisy]
        for key in ("fid", "kid"):
            values = [score["classifier"][key] for score in scores]
            assert values == sorted(values)
            assert values[-1] > 2 * scores[0]["classifier"][f"{key}_floor"]
        for level, keys in LEVELS.items():
            part = evaluator.evaluate(noisy[0], data.test.labels, "ddpm", level).scores
            assert part["accuracy"] == scores[0]["accuracy"]
            assert part["classifier"].items() <= scores[0]["classifier"].items()
            assert {*keys} <= part["classifier"].keys()
            assert ("memorization" in part) == (level == "full")

    def test_a_collapse_lowers_is_recall_and_diversity(self):
        data, evaluator = digits_data(), make_evaluator()
        samples = np.repeat(data.test.images[:1], 500, 0)
        result = evaluator.evaluate(samples, data.test.labels, "ddpm")
        assert result.scores["classifier"]["is"] == pytest.approx(1)
        assert result.scores["classifier"]["fid"] > 2 * evaluator.fid_floor
        assert result.scores["classifier"]["recall"] < 0.01
        assert result.scores["accuracy"] == pytest.approx((data.test.labels == result.predicted_class[0]).mean())
        assert result.scores["diversity"]["classifier"] == 0

    def test_three_sets_have_a_standard_deviation(self):
        data = digits_data()
        evaluator = make_evaluator(data=first_images(data, 1297, 150))
        assert evaluator.sizes == (150, 3)
        scores = evaluator.evaluate(data.train.images[:500], None, "ddim").scores
        assert all(scores["classifier"][f"{key}_sd"] > 0 for key in ("fid", "kid", "is"))
        assert "accuracy" not in scores
        assert scores["memorization"]["near_copies"] == 1
        assert scores["memorization"]["nn_auc"] < 0.01

    def test_scores_are_equal_on_any_number_of_processes(self):
        data = digits_data()
        few = first_images(data, 1297, 60)

        def work():
            result = make_evaluator(120, few).evaluate(data.test.images[100:220], data.test.labels[100:220], "ddpm")
            return result.scores, result.predicted_class.tolist(), result.neighbours.tobytes(), result.ratios.tolist()

        alone = work()
        for count in (2, 3):
            assert in_processes(count, work) == [alone] * count

    def test_small_sets_are_refused_where_neighbours_are_needed(self):
        images, evaluator = digits_data().train.images, make_evaluator(MIN_IMAGES - 1)
        with input_error("evaluate", match="sets of 5 images are too few for 5 neighbours of each; use at least 6"):
            evaluator.evaluate(images[:5], None, "ddim")
        assert np.isfinite(evaluator.evaluate(images[:5], None, "ddim", "fid").scores["classifier"]["fid"])
        scores = make_evaluator(MIN_IMAGES).evaluate(images[:MIN_IMAGES], None, "ddim").scores
        assert np.isfinite(list(scores["classifier"].values())).all()

    def test_samples_of_another_shape_are_refused(self):
        with input_error("samples/ddim.npz"):
            make_evaluator().evaluate(np.zeros((500, 9, 9, 1), np.uint8), np.zeros(500), "ddim")


def test_a_new_extractor_is_one_row(monkeypatch):
    data = digits_data()
    projection = RNG.standard_normal((64, 8))

    def load(device, weights, classifier):
        return lambda images, name: (images.reshape(len(images), -1) / 255 @ projection, None)

    evaluator = make_evaluator()
    before = evaluator.evaluate(data.test.images, None, "ddpm").scores
    monkeypatch.setitem(EXTRACTORS, "projection", Extractor("a random projection", load))
    scores = evaluator.evaluate(data.test.images, None, "ddpm").scores
    assert "is" not in scores["projection"], "there are no class probabilities"
    assert scores["projection"]["fid"] == pytest.approx(scores["projection"]["fid_floor"], rel=1e-9)
    assert {key: value for key, value in scores.items() if key != "projection"} == before
    assert evaluator.real()["projection"].keys() == {*COVERAGE}
    assert describe_metrics()["extractors"][-1] == {"name": "projection", "title": "a random projection"}


def test_a_new_metric_is_one_function_and_one_row(monkeypatch):
    data, evaluator = digits_data(), make_evaluator()

    def mean_distance(samples, reference):
        return float(np.linalg.norm(samples.features.mean(0) - reference.train.mean(0)))

    row = Metric("mean_distance", mean_distance, "mean distance", "lower", "distance between means of features", REAL)
    monkeypatch.setitem(METRICS, "mean_distance", row)
    scores = evaluator.evaluate(data.test.images, None, "ddpm").scores["classifier"]
    assert evaluator.real()["classifier"]["mean_distance"] == scores["mean_distance"] > 0
    assert describe_metrics()["feature_metrics"][-1] == {
        "key": "mean_distance", "title": "mean distance", "better": "lower", "meaning": "distance between means of features",
        "floor": "real", "share": False,
    }  # fmt: skip


def test_descriptions_name_scores_that_exist():
    data = digits_data()
    scores = make_evaluator(data=first_images(data, 1297, 150)).evaluate(data.train.images[:450], None, "ddpm").scores
    described = describe_metrics()
    assert [row["name"] for row in described["extractors"]] == [name for name in scores if name in EXTRACTORS]
    assert {row["key"] for row in described["feature_metrics"]} <= scores["classifier"].keys()
    for row in described["sample_metrics"]:
        section, key = row["key"].split(".")
        assert key in scores[section] or row["key"] == "diversity.alex"
        if row["floor"]:
            assert row["floor"].split(".")[1] in scores[section]
