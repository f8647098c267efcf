"""Precision, recall, density and coverage: against a naive implementation, a library, and what each must say."""

import numpy as np
import pytest
import torch
from processes import in_processes
from torch_fidelity.metric_prc import prc_features_to_metric

from ddpm.core.files import InputError
from ddpm.evaluation import prdc
from ddpm.evaluation.prdc import BALL_K, MANIFOLD_K, PRDC, neighbour_radii, row_chunks, squared_distances

RNG = np.random.default_rng(0)


def naive(real, fake):
    """The four scores straight from their definitions."""

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
def test_they_agree_with_their_definitions(n, m, d):
    real, fake = sets(n, m, d)
    found = PRDC(real, "real")(fake, "fake")
    assert found == pytest.approx(naive(real, fake), rel=1e-12)
    assert list(found) == ["precision", "recall", "density", "coverage"]


@pytest.mark.parametrize("d", [3, 64])
def test_precision_and_recall_agree_with_torch_fidelity(d):
    real, fake = sets(300, 300, d, shift=0.2)
    peer = prc_features_to_metric(torch.from_numpy(fake), torch.from_numpy(real), verbose=False)
    found = PRDC(real, "real")(fake, "fake")
    assert found["precision"] == pytest.approx(peer["precision"], abs=1e-6)
    assert found["recall"] == pytest.approx(peer["recall"], abs=1e-6)
    assert 0 < found["recall"] < 1


class TestMeaning:
    real = RNG.standard_normal((400, 5))

    def score(self, fake):
        return PRDC(self.real, "real")(fake, "fake")

    def test_the_real_points_themselves(self):
        # Every real ball holds its centre and its 5 neighbours.
        assert self.score(self.real) == pytest.approx({"precision": 1, "recall": 1, "density": 6 / 5, "coverage": 1})

    def test_other_points_of_the_same_law(self):
        found = self.score(RNG.standard_normal((400, 5)))
        assert found["density"] == pytest.approx(1, abs=0.15)
        assert min(found["precision"], found["recall"]) > 0.8
        # 1 - 2^-k for points of one law (Naeem et al. 2020, eq. 9).
        assert found["coverage"] == pytest.approx(1 - 2**-BALL_K, abs=0.04)

    def test_points_elsewhere(self):
        assert set(self.score(self.real + 100).values()) == {0.0}

    def test_a_collapse_keeps_precision_and_loses_the_rest(self):
        found = self.score(np.repeat(self.real[:10], 40, axis=0) + 1e-3 * RNG.standard_normal((400, 5)))
        assert found["precision"] > 0.95
        assert found["recall"] < 0.1
        assert found["coverage"] < 0.25

    def test_copies_of_one_point(self):
        """Balls of radius 0: rounding must not decide who is inside."""
        found = self.score(np.repeat(self.real[:1], 20, axis=0))
        assert found["precision"] == 1
        assert found["recall"] == 1 / 400

    def test_they_do_not_depend_on_where_the_origin_is(self):
        _, fake = sets(400, 0, 5)
        far = PRDC(self.real + 1e6, "real")(fake + 1e6, "fake")
        assert far == pytest.approx(self.score(fake), abs=0.003)


def test_equal_points_are_at_distance_0():
    points = torch.randn(50, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3
    found = squared_distances(points, points)
    assert (found.diagonal() == 0).all()
    assert (found + torch.eye(50) > 0).all()
    torch.testing.assert_close(found, torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square())


def test_chunks_are_small_whatever_the_size():
    for rows, columns in [(10_000, 10_000), (50_000, 50_000), (3, 5), (10, 10**8)]:
        chunks = row_chunks(rows, columns)
        assert [c.start for c in chunks] == [0, *(c.stop for c in chunks[:-1])]
        assert chunks[-1].stop == rows
        assert max(c.stop - c.start for c in chunks) * columns <= max(prdc.ELEMENTS, columns)


def test_chunks_and_processes_change_nothing(monkeypatch):
    real, fake = sets(90, 70, 6)
    alone = PRDC(real, "real")(fake, "fake")
    monkeypatch.setattr(prdc, "ELEMENTS", 500)

    def work():
        return PRDC(real, "real")(fake, "fake")

    assert work() == alone
    for count in (2, 3):
        assert in_processes(count, work) == [alone] * count


def test_too_few_points_are_refused():
    real, fake = sets(5, 6, 3)
    balls = PRDC(real, "real")
    with pytest.raises(InputError, match=r"^ddim: 5 images are too few for 5 neighbours of each; use at least 6$"):
        balls(fake, "ddim")
    with pytest.raises(InputError, match=r"^training split: 5 images are too few"):
        PRDC(real[:5], "training split")
    with pytest.raises(InputError, match="3 images are too few for 3 neighbours of each; use at least 4"):
        neighbour_radii(torch.zeros(3, 2, dtype=torch.float64), [3], "x")
