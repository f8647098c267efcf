"""Precision, recall, density and coverage against their definitions, torch-fidelity and known cases."""

import numpy as np
import pytest
import torch
from conftest import input_error
from processes import in_processes
from torch_fidelity.metric_prc import prc_features_to_metric

from ddpm.evaluation import prdc
from ddpm.evaluation.prdc import BALL_K, MANIFOLD_K, PRDC, neighbour_radii, row_chunks, squared_distances

RNG = np.random.default_rng(0)


def naive(real, fake):
    """The four scores from their definitions."""

    def distances(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=2)

    def radius(points, k):
        return np.sort(distances(points, points), axis=1)[:, k]

    between = distances(fake, real)
    inside = between <= radius(real, BALL_K)
    return {
        "precision": (between <= radius(real, MANIFOLD_K)).any(1).mean(),
        "recall": (between <= radius(fake, MANIFOLD_K)[:, None]).any(0).mean(),
        "density": inside.sum() / (BALL_K * len(fake)),
        "coverage": inside.any(0).mean(),
    }


def sets(n, m, d, shift=0.4):
    return RNG.standard_normal((m, d)), RNG.standard_normal((n, d)) * 0.9 + shift


@pytest.mark.parametrize(("n", "m", "d"), [(200, 200, 4), (60, 150, 16), (150, 60, 2), (6, 6, 3)])
def test_prdc_equals_its_definition(n, m, d):
    real, fake = sets(n, m, d)
    assert PRDC(real, "real")(fake, "fake") == pytest.approx(naive(real, fake), rel=1e-12)


@pytest.mark.parametrize("d", [3, 64])
def test_precision_and_recall_agree_with_torch_fidelity(d):
    real, fake = sets(300, 300, d, shift=0.2)
    peer = prc_features_to_metric(torch.from_numpy(fake), torch.from_numpy(real), verbose=False)
    scores = PRDC(real, "real")(fake, "fake")
    assert scores["precision"] == pytest.approx(peer["precision"], abs=1e-6)
    assert scores["recall"] == pytest.approx(peer["recall"], abs=1e-6)
    assert 0 < scores["recall"] < 1


class TestMeaning:
    real = RNG.standard_normal((400, 5))

    def score(self, fake):
        return PRDC(self.real, "real")(fake, "fake")

    def test_prdc_of_the_real_points_and_of_distant_ones(self):
        # Every real ball holds its centre and its 5 neighbours.
        assert self.score(self.real) == pytest.approx({"precision": 1, "recall": 1, "density": 6 / 5, "coverage": 1})
        assert set(self.score(self.real + 100).values()) == {0.0}

    def test_prdc_of_the_same_distribution(self):
        fake = RNG.standard_normal((400, 5))
        scores = self.score(fake)
        assert scores["density"] == pytest.approx(1, abs=0.15)
        assert min(scores["precision"], scores["recall"]) > 0.8
        # 1 - 2^-k for points of one distribution (Naeem et al. 2020, eq. 9).
        assert scores["coverage"] == pytest.approx(1 - 2**-BALL_K, abs=0.04)
        shifted = PRDC(self.real + 1e6, "real")(fake + 1e6, "fake")
        assert shifted == pytest.approx(scores, abs=0.003), "the origin does not matter"

    def test_prdc_of_a_collapse_keeps_precision_alone(self):
        scores = self.score(np.repeat(self.real[:10], 40, axis=0) + 1e-3 * RNG.standard_normal((400, 5)))
        assert scores["precision"] > 0.95
        assert scores["recall"] < 0.1
        assert scores["coverage"] < 0.25
        # Copies of one point have balls of radius 0: rounding must not decide who is inside.
        scores = self.score(np.repeat(self.real[:1], 20, axis=0))
        assert scores["precision"] == 1
        assert scores["recall"] == 1 / 400


def test_squared_distances_of_equal_points_are_0():
    points = torch.randn(50, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3
    distances = squared_distances(points, points)
    assert (distances.diagonal() == 0).all()
    assert (distances + torch.eye(50) > 0).all()
    torch.testing.assert_close(distances, torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square())


def test_row_chunks_have_a_bounded_size():
    for rows, columns in [(10_000, 10_000), (50_000, 50_000), (3, 5), (10, 10**8)]:
        chunks = row_chunks(rows, columns)
        assert [c.start for c in chunks] == [0, *(c.stop for c in chunks[:-1])]
        assert chunks[-1].stop == rows
        assert max(c.stop - c.start for c in chunks) * columns <= max(prdc.ELEMENTS, columns)


def test_prdc_does_not_depend_on_chunks_and_processes(monkeypatch):
    real, fake = sets(90, 70, 6)
    alone = PRDC(real, "real")(fake, "fake")
    monkeypatch.setattr(prdc, "ELEMENTS", 500)

    def work():
        return PRDC(real, "real")(fake, "fake")

    assert work() == alone
    for count in (2, 3):
        assert in_processes(count, work) == [alone] * count


def test_prdc_refuses_too_few_points():
    real, fake = sets(5, 6, 3)
    points = torch.zeros(3, 2, dtype=torch.float64)
    calls = [lambda: PRDC(real, "x")(fake, "ddim"), lambda: PRDC(fake, "ddim"), lambda: neighbour_radii(points, [3], "ddim")]
    for call in calls:
        with input_error("ddim", match=r"images are too few for \d neighbours of each; use at least"):
            call()
