"""Memorization finds and counts copies of training images; diversity and class shares compare with real images."""

import numpy as np
import pytest
import torch
from conftest import input_error
from evaluation_data import CPU, digits_data, untrained_classifier
from processes import in_processes

from ddpm.evaluation import memorization
from ddpm.evaluation.class_balance import class_shares, total_variation, total_variation_floor
from ddpm.evaluation.lpips import Diversity
from ddpm.evaluation.memorization import Memorization, rank_statistic

RNG = np.random.default_rng(0)
TRAIN, TEST = digits_data().train.images, digits_data().test.images


@pytest.fixture(scope="module")
def searched():
    return Memorization(TRAIN, TEST[:250])


def score(searched, images):
    return searched.score(searched.nearest(images, "samples"))


def naive(images, train):
    """Squared distances (N, M) in integers."""
    a, b = (x.reshape(len(x), -1).astype(np.int64) for x in (images, train))
    return np.square(a[:, None] - b[None]).sum(2)


class TestNearest:
    def test_nearest_equals_the_minimum_of_all_distances(self, searched):
        near = searched.nearest(TEST[250:350], "samples")
        distances = naive(TEST[250:350], TRAIN)
        np.testing.assert_array_equal(near.squared, distances.min(1))
        np.testing.assert_array_equal(near.index, distances.argmin(1))
        ordered = np.sqrt(np.sort(distances, axis=1))
        np.testing.assert_allclose(near.ratio, ordered[:, 0] / ordered[:, 1:51].mean(1), rtol=1e-5)

    def test_nearest_of_large_images_that_differ_by_one_step(self):
        """Beyond the precision of float32: the nearest is chosen by integers."""
        base = RNG.integers(0, 256, (1, 64, 64, 3), np.uint8).clip(0, 250)
        train = np.repeat(base, 6, axis=0)
        for i in range(6):
            train[i].reshape(-1)[: 6 - i] += 1
        near = Memorization(train, train[:1]).nearest(np.concatenate([base, train]), "samples")
        assert near.squared.tolist() == [1, 0, 0, 0, 0, 0, 0]
        assert near.index.tolist() == [5, 0, 1, 2, 3, 4, 5]

    def test_nearest_prefers_the_lower_index(self):
        train = np.concatenate([TRAIN[:60], TRAIN[:60]])
        assert Memorization(train, TEST).nearest(TRAIN[:60], "samples").index.tolist() == list(range(60))

    def test_nearest_does_not_depend_on_chunks_and_processes(self, searched, monkeypatch):
        images = np.concatenate([TEST[250:300], TRAIN[:20]])
        alone = searched.nearest(images, "samples")
        scores = searched.score(alone)
        monkeypatch.setattr(memorization, "ROWS", 16)
        monkeypatch.setattr(memorization, "ELEMENTS", 16 * 64)

        def work():
            other = Memorization(TRAIN, TEST[:250])
            near = other.nearest(images, "samples")
            return near, other.score(near)

        for near, result in [work(), *(result for count in (2, 3) for result in in_processes(count, work))]:
            np.testing.assert_array_equal(near.squared, alone.squared)
            np.testing.assert_array_equal(near.index, alone.index)
            np.testing.assert_allclose(near.ratio, alone.ratio, rtol=1e-6)
            assert result == pytest.approx(scores, rel=1e-12)

    def test_closest_are_the_most_like_copies(self, searched):
        images = np.concatenate([TEST[250:350], TRAIN[7:10]])
        near = searched.nearest(images, "samples")
        pairs, ratios = searched.closest(images, near)
        assert (pairs.shape, pairs.dtype) == ((2, 10, 8, 8, 1), np.uint8)
        np.testing.assert_array_equal(pairs[:, :3], np.stack([TRAIN[7:10]] * 2))
        assert ratios.tolist() == sorted(near.ratio)[:10]
        np.testing.assert_array_equal(naive(pairs[0], pairs[1]).diagonal(), np.sort(naive(pairs[0], TRAIN), 1)[:, 0])
        assert searched.closest(images[:4], searched.nearest(images[:4], "samples"))[0].shape == (2, 4, 8, 8, 1)


class TestScores:
    def test_copies_are_detected_also_with_a_little_noise(self, searched):
        scores = score(searched, TRAIN[:300])
        assert scores["nn_auc"] < 0.01
        assert (scores["near_copies"], scores["authenticity"]) == (1, 0)
        noisy = np.clip(TRAIN[:300] + RNG.integers(-8, 9, TRAIN[:300].shape), 0, 255).astype(np.uint8)
        scores = score(searched, noisy)
        assert scores["nn_auc"] < 0.05
        assert scores["near_copies"] > 0.9
        assert scores["authenticity"] < 0.1

    def test_held_out_images_score_like_test_images(self, searched):
        scores = score(searched, TEST[250:])
        assert scores["nn_auc"] == pytest.approx(0.5, abs=0.05)
        assert scores["near_copies"] == pytest.approx(scores["near_copies_test"], abs=0.03)
        assert scores["authenticity"] == pytest.approx(scores["authenticity_test"], abs=0.1)
        scores = score(searched, np.concatenate([TEST[250:], TRAIN[:250]]))
        assert scores["nn_auc"] == pytest.approx(0.25, abs=0.03), "half of them copies"
        assert scores["near_copies"] > 0.5

    def test_authenticity_compares_with_the_nearest_other_training_image(self):
        train, images = TRAIN[:200], np.concatenate([TEST[250:400], TRAIN[:50]])
        within = naive(train, train)
        np.fill_diagonal(within, np.iinfo(np.int64).max)
        distances = naive(images, train)
        expected = (distances.min(1) > within.min(1)[distances.argmin(1)]).mean()
        assert score(Memorization(train, TEST), images)["authenticity"] == pytest.approx(expected)
        assert 0 < expected < 1

    def test_few_and_equal_training_images(self):
        assert score(Memorization(TRAIN[:3], TEST[:20]), TRAIN[:3])["near_copies"] == 1
        with input_error("memorization"):
            Memorization(TRAIN[:1], TEST)
        equal = np.repeat(TRAIN[:1], 80, axis=0)
        scores = score(Memorization(equal, equal[:20]), equal[:20])
        assert scores == {"nn_auc": 0.5, "near_copies": 1, "near_copies_test": 1, "authenticity": 0, "authenticity_test": 0}

    def test_rank_statistic_is_a_share_of_pairs(self):
        a, b = RNG.integers(0, 20, 70), RNG.integers(5, 25, 90)
        expected = ((a[:, None] > b) + 0.5 * (a[:, None] == b)).mean()
        assert rank_statistic(a, b) == pytest.approx(expected, rel=1e-12)
        assert rank_statistic(a, a) == 0.5
        assert rank_statistic(np.zeros(3), np.ones(2)) == 0
        assert rank_statistic(np.ones(2), np.zeros(3)) == 1


class TestDiversity:
    def test_diversity_of_real_images_and_of_a_collapse(self):
        diversity = Diversity(untrained_classifier(), TEST, 500, 0, CPU)
        assert diversity(TEST) == {"classifier": 1, "status": "weights missing"}
        of_train = diversity(TRAIN)["classifier"]
        assert of_train == pytest.approx(1, abs=0.1)
        assert diversity(np.repeat(TEST[:1], 500, axis=0))["classifier"] == 0
        assert diversity(np.repeat(TEST[:3], 167, axis=0))["classifier"] < of_train
        with input_error("diversity"):
            Diversity(untrained_classifier(), np.repeat(TEST[:1], 20, axis=0), 20, 0, CPU)

    def test_diversity_uses_each_image_once(self, monkeypatch):
        pairs = []
        monkeypatch.setattr("ddpm.evaluation.lpips.Perceptual.__call__", lambda self, a, b: pairs.append((a, b)) or {})
        numbered = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
        Diversity(untrained_classifier(), numbered, 41, 0, CPU)
        a, b = pairs[0]
        assert len(a) == len(b) == 20
        assert len(torch.unique(torch.cat([a, b])[:, 0, 0, 0])) == 40

    def test_diversity_is_equal_on_any_number_of_processes(self, monkeypatch):
        monkeypatch.setattr("ddpm.evaluation.lpips.BATCH", 40)

        def work():
            return Diversity(untrained_classifier(), TEST, 200, 0, CPU)(TRAIN)["classifier"]

        assert in_processes(2, work) == [work()] * 2


class TestClassBalance:
    def test_total_variation_of_known_shares(self):
        even = np.full(10, 0.1)
        assert total_variation(np.arange(100) % 10, even) == pytest.approx(0)
        assert total_variation(np.zeros(50, np.int64), even) == pytest.approx(0.9)
        assert total_variation(np.arange(90) % 9, even) == pytest.approx(0.1)
        np.testing.assert_allclose(class_shares(np.array([0, 2, 2, 1]), 4), [0.25, 0.25, 0.5, 0])

    def test_total_variation_floor_is_that_of_random_draws(self):
        expected = np.array([0.5, 0.3, 0.15, 0.05, 0.0])
        for n in (20, 500):
            draws = RNG.multinomial(n, expected, 20_000) / n
            simulated = np.abs(draws - expected).sum(1) / 2
            assert total_variation_floor(expected, n) == pytest.approx(simulated.mean(), rel=0.02)
        for n in (500, 10_000):
            assert total_variation_floor(np.full(10, 0.1), n) == pytest.approx(1.2 / n**0.5, rel=0.02)
        assert total_variation_floor(np.array([1.0]), 100) == 0


def test_every_kth_image_of_a_large_test_split_is_used(monkeypatch):
    monkeypatch.setattr(memorization, "TEST_IMAGES", 100)
    assert np.array_equal(Memorization(TRAIN, TEST[:250]).test.squared, Memorization(TRAIN, TEST[:250:3]).test.squared)
