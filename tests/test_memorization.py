"""Copies of training images are found and counted; diversity and class shares beside real images."""

import numpy as np
import pytest
import torch
from processes import in_processes

from ddpm.core.files import InputError
from ddpm.datasets.registry import digits
from ddpm.evaluation import memorization
from ddpm.evaluation.class_balance import class_shares, total_variation, total_variation_floor
from ddpm.evaluation.lpips import Diversity
from ddpm.evaluation.memorization import Memorization, rank_statistic
from ddpm.features.classifier import Classifier

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
TRAIN, TEST = (split.images for split in digits(None)[:2])


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    return Classifier(1, 10).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def found_in():
    return Memorization(TRAIN, TEST[:250])


def scored(found_in, images):
    return found_in.score(found_in.nearest(images, "samples"))


def naive(images, train):
    """Squared distances (N, M) in whole numbers."""
    a, b = (x.reshape(len(x), -1).astype(np.int64) for x in (images, train))
    return np.square(a[:, None] - b[None]).sum(2)


class TestNearest:
    def test_they_are_those_of_all_distances(self, found_in):
        near = found_in.nearest(TEST[250:350], "samples")
        every = naive(TEST[250:350], TRAIN)
        np.testing.assert_array_equal(near.squared, every.min(1))
        np.testing.assert_array_equal(near.index, every.argmin(1))
        ordered = np.sqrt(np.sort(every, axis=1))
        np.testing.assert_allclose(near.ratio, ordered[:, 0] / ordered[:, 1:51].mean(1), rtol=1e-5)

    def test_authenticity_holds_them_to_the_nearest_other_training_image(self):
        train, images = TRAIN[:200], np.concatenate([TEST[250:400], TRAIN[:50]])
        within = naive(train, train)
        np.fill_diagonal(within, np.iinfo(np.int64).max)
        every = naive(images, train)
        expected = (every.min(1) > within.min(1)[every.argmin(1)]).mean()
        assert scored(Memorization(train, TEST), images)["authenticity"] == pytest.approx(expected)
        assert 0 < expected < 1

    def test_large_images_that_differ_by_one_step(self):
        """Beyond what float32 can tell apart: the nearest is chosen by whole numbers."""
        base = RNG.integers(0, 256, (1, 64, 64, 3), np.uint8).clip(0, 250)
        train = np.repeat(base, 6, axis=0)
        for i in range(6):
            train[i].reshape(-1)[: 6 - i] += 1
        near = Memorization(train, train[:1]).nearest(np.concatenate([base, train]), "samples")
        assert near.squared.tolist() == [1, 0, 0, 0, 0, 0, 0]
        assert near.index.tolist() == [5, 0, 1, 2, 3, 4, 5]

    def test_the_lower_index_wins_a_tie(self):
        train = np.concatenate([TRAIN[:60], TRAIN[:60]])
        assert Memorization(train, TEST).nearest(TRAIN[:60], "samples").index.tolist() == list(range(60))

    def test_chunks_blocks_and_processes_change_nothing(self, found_in, monkeypatch):
        images = np.concatenate([TEST[250:300], TRAIN[:20]])
        alone = found_in.nearest(images, "samples")
        scores = found_in.score(alone)
        monkeypatch.setattr(memorization, "ROWS", 16)
        monkeypatch.setattr(memorization, "ELEMENTS", 16 * 64)

        def work():
            searched = Memorization(TRAIN, TEST[:250])
            near = searched.nearest(images, "samples")
            return near.squared, near.index, near.ratio, searched.score(near)

        results = [work(), *(result for count in (2, 3) for result in in_processes(count, work))]
        for squared, index, ratio, found in results:
            np.testing.assert_array_equal(squared, alone.squared)
            np.testing.assert_array_equal(index, alone.index)
            np.testing.assert_allclose(ratio, alone.ratio, rtol=1e-6)
            assert found == pytest.approx(scores, rel=1e-12)

    def test_few_training_images(self):
        few = Memorization(TRAIN[:3], TEST[:20])
        assert scored(few, TRAIN[:3])["near_copies"] == 1
        with pytest.raises(InputError, match="memorization: 1 training images are too few; use at least 2"):
            Memorization(TRAIN[:1], TEST)

    def test_images_that_are_all_alike_are_copies(self):
        alike = np.repeat(TRAIN[:1], 80, axis=0)
        scores = scored(Memorization(alike, alike[:20]), alike[:20])
        assert scores == {"nn_auc": 0.5, "near_copies": 1, "near_copies_test": 1, "authenticity": 0, "authenticity_test": 0}


class TestMemorization:
    def test_copies_of_the_training_images(self, found_in):
        scores = scored(found_in, TRAIN[:300])
        assert scores["nn_auc"] < 0.01
        assert scores["near_copies"] == 1
        assert scores["authenticity"] == 0

    def test_copies_with_a_little_noise(self, found_in):
        noisy = np.clip(TRAIN[:300] + RNG.integers(-8, 9, TRAIN[:300].shape), 0, 255).astype(np.uint8)
        scores = scored(found_in, noisy)
        assert scores["nn_auc"] < 0.05
        assert scores["near_copies"] > 0.9
        assert scores["authenticity"] < 0.1

    def test_held_out_images(self, found_in):
        scores = scored(found_in, TEST[250:])
        assert scores["nn_auc"] == pytest.approx(0.5, abs=0.05)
        assert scores["near_copies"] == pytest.approx(scores["near_copies_test"], abs=0.03)
        assert scores["authenticity"] == pytest.approx(scores["authenticity_test"], abs=0.1)

    def test_half_copies_half_held_out(self, found_in):
        scores = scored(found_in, np.concatenate([TEST[250:], TRAIN[:250]]))
        assert scores["nn_auc"] == pytest.approx(0.25, abs=0.03)
        assert scores["near_copies"] > 0.5

    def test_the_pictured_are_the_most_like_copies(self, found_in):
        images = np.concatenate([TEST[250:350], TRAIN[7:10]])
        near = found_in.nearest(images, "samples")
        pairs, ratios = found_in.closest(images, near)
        assert pairs.shape == (2, 10, 8, 8, 1)
        assert pairs.dtype == np.uint8
        np.testing.assert_array_equal(pairs[:, :3], np.stack([TRAIN[7:10]] * 2))
        assert ratios.tolist() == sorted(near.ratio)[:10]
        np.testing.assert_array_equal(naive(pairs[0], pairs[1]).diagonal(), np.sort(naive(pairs[0], TRAIN), 1)[:, 0])
        assert found_in.closest(images[:4], found_in.nearest(images[:4], "samples"))[0].shape == (2, 4, 8, 8, 1)


def test_the_rank_statistic_is_a_share_of_pairs():
    a, b = RNG.integers(0, 20, 70), RNG.integers(5, 25, 90)
    expected = ((a[:, None] > b) + 0.5 * (a[:, None] == b)).mean()
    assert rank_statistic(a, b) == pytest.approx(expected, rel=1e-12)
    assert rank_statistic(a, a) == 0.5
    assert rank_statistic(np.zeros(3), np.ones(2)) == 0
    assert rank_statistic(np.ones(2), np.zeros(3)) == 1


class TestDiversity:
    @pytest.fixture(scope="class")
    def diversity(self, judge):
        return Diversity(judge, TEST, 500, 0, CPU)

    def test_real_images_a_collapse_and_noise(self, diversity):
        assert diversity(TEST)["classifier"] == 1
        assert diversity(TRAIN)["classifier"] == pytest.approx(1, abs=0.1)
        assert diversity(np.repeat(TEST[:1], 500, axis=0))["classifier"] == 0
        few = diversity(np.repeat(TEST[:3], 167, axis=0))["classifier"]
        assert few < diversity(TRAIN)["classifier"]
        assert diversity(TEST)["status"] == "weights missing"

    def test_each_image_stands_in_one_pair(self, judge, monkeypatch):
        pairs = []
        monkeypatch.setattr("ddpm.evaluation.lpips.Perceptual.__call__", lambda self, a, b: pairs.append((a, b)) or {})
        numbered = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
        Diversity(judge, numbered, 41, 0, CPU)
        a, b = pairs[0]
        assert len(a) == len(b) == 20
        assert len(torch.unique(torch.cat([a, b])[:, 0, 0, 0])) == 40

    def test_test_images_that_are_all_alike(self, judge):
        with pytest.raises(InputError, match=r"diversity: LPIPS \(classifier\) between test images is 0"):
            Diversity(judge, np.repeat(TEST[:1], 20, axis=0), 20, 0, CPU)

    def test_it_is_the_same_on_any_number_of_processes(self, judge, diversity, monkeypatch):
        monkeypatch.setattr("ddpm.evaluation.lpips.BATCH", 40)

        def work():
            return Diversity(judge, TEST, 200, 0, CPU)(TRAIN)["classifier"]

        alone = work()
        assert in_processes(2, work) == [alone] * 2


class TestClasses:
    def test_total_variation(self):
        even = np.full(10, 0.1)
        assert total_variation(np.arange(100) % 10, even) == pytest.approx(0)
        assert total_variation(np.zeros(50, np.int64), even) == pytest.approx(0.9)
        assert total_variation(np.arange(90) % 9, even) == pytest.approx(0.1)
        np.testing.assert_allclose(class_shares(np.array([0, 2, 2, 1]), 4), [0.25, 0.25, 0.5, 0])

    @pytest.mark.parametrize("n", [20, 500])
    def test_its_floor_is_that_of_random_draws(self, n):
        expected = np.array([0.5, 0.3, 0.15, 0.05, 0.0])
        draws = RNG.multinomial(n, expected, 20_000) / n
        simulated = np.abs(draws - expected).sum(1) / 2
        assert total_variation_floor(expected, n) == pytest.approx(simulated.mean(), rel=0.02)

    def test_its_floor_for_ten_equal_classes_is_about_1_2_over_the_root_of_n(self):
        for n in (500, 10_000):
            assert total_variation_floor(np.full(10, 0.1), n) == pytest.approx(1.2 / n**0.5, rel=0.02)

    def test_one_class_has_no_floor(self):
        assert total_variation_floor(np.array([1.0]), 100) == 0
