"""FID, KID and Inception Score against closed forms and torch-fidelity."""

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import input_error
from processes import in_processes
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from ddpm.evaluation.fid import (
    consecutive_sets,
    disjoint_sets,
    frechet_at_infinity,
    inception_score,
    kernel_distance,
    kernel_within,
)
from ddpm.features.frechet import fit_gaussian, frechet

RNG = np.random.default_rng(0)


def frechet_distance(a, b):
    return frechet(fit_gaussian(a), fit_gaussian(b))


class TestFrechet:
    def exact_sample(self, mean, variances):
        """2 d points with exactly this sample mean and unbiased diagonal covariance."""
        d = len(mean)
        points = np.concatenate([np.eye(d), -np.eye(d)]) * np.sqrt((2 * d - 1) / 2)
        return points @ scipy.linalg.sqrtm(np.diag(variances)).real + mean

    def test_frechet_of_known_gaussians(self):
        a = self.exact_sample(np.zeros(8), np.linspace(0.5, 2, 8))
        b = self.exact_sample(np.linspace(0, 1, 8), np.linspace(2, 0.25, 8))
        assert frechet_distance(a, b) == pytest.approx(5.065024272736611, rel=1e-10)
        c = RNG.standard_normal((100, 8))
        assert frechet_distance(c, c + 3) == pytest.approx(72, rel=1e-10)

    @pytest.mark.parametrize(("n", "m", "d"), [(500, 400, 16), (2000, 3000, 64), (20, 30, 64)])
    def test_frechet_agrees_with_torch_fidelity_and_is_symmetric(self, n, m, d):
        mix = RNG.standard_normal((d, d)) / np.sqrt(d)
        a, b = RNG.standard_normal((n, d)) @ mix, RNG.standard_normal((m, d)) @ mix.T * 1.2 + 0.1
        statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
        peer = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        # The peer's matrix square root of a singular covariance is good to about 1e-4.
        assert frechet_distance(a, b) == pytest.approx(peer, rel=1e-5 if n > d else 1e-3)
        assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-10)

    @pytest.mark.parametrize(("n", "d"), [(300, 20), (20, 300)])
    def test_frechet_of_equal_sets_is_zero(self, n, d):
        a = RNG.standard_normal((n, d))
        assert frechet_distance(a, a) < 1e-9
        assert frechet_distance(a, a[::-1]) < 1e-9

    def test_frechet_falls_with_more_samples(self):
        a = RNG.standard_normal((4000, 8))
        assert frechet_distance(a[:2000], a[2000:]) < 0.2 * frechet_distance(a[:100], a[100:200])


class TestFrechetAtInfinity:
    def test_frechet_at_infinity_has_no_bias(self):
        """For samples of the reference distribution: the distance at N is all bias, that at infinity none."""
        reference = fit_gaussian(RNG.standard_normal((100_000, 16)))
        sets = RNG.standard_normal((20, 500, 16))
        whole = np.mean([frechet(fit_gaussian(features), reference) for features in sets])
        assert whole == pytest.approx(0.17, rel=0.1)
        assert abs(np.mean([frechet_at_infinity(features, reference) for features in sets])) < 0.1 * whole

    def test_frechet_at_infinity_limits_its_parts(self):
        """With 500 images of 64 features, fifths would end the line at -0.34."""
        reference = fit_gaussian(RNG.standard_normal((50_000, 64)))
        values = [frechet_at_infinity(RNG.standard_normal((500, 64)), reference) for _ in range(10)]
        assert np.mean(values) == pytest.approx(0, abs=0.15)

    def test_frechet_at_infinity_keeps_a_true_distance(self):
        reference = fit_gaussian(RNG.standard_normal((50_000, 8)))
        values = [frechet_at_infinity(RNG.standard_normal((400, 8)) + 0.5, reference) for _ in range(10)]
        assert np.mean(values) == pytest.approx(8 * 0.5**2, rel=0.05)

    def test_frechet_at_infinity_is_deterministic_and_needs_four_features(self):
        features = RNG.standard_normal((60, 4))
        reference = fit_gaussian(features)
        assert frechet_at_infinity(features, reference) == frechet_at_infinity(features.copy(), reference)
        assert np.isfinite(frechet_at_infinity(features[:4], reference))
        with input_error("fid_infinity"):
            frechet_at_infinity(features[:3], reference)


class TestKernelDistance:
    @pytest.mark.parametrize("d", [4, 64, 300])
    def test_kid_agrees_with_torch_fidelity_on_whole_sets(self, d):
        a, b = RNG.standard_normal((200, d)), RNG.standard_normal((200, d)) * 1.1 + 0.1
        tensors = torch.from_numpy(a), torch.from_numpy(b)
        peer = kid_features_to_metric(*tensors, kid_subsets=1, kid_subset_size=200, verbose=False)
        assert kernel_distance(a, b) == pytest.approx(peer["kernel_inception_distance_mean"], rel=1e-9)
        assert kernel_distance(b, a) == pytest.approx(kernel_distance(a, b), rel=1e-9)

    def test_kid_is_the_mean_of_torch_fidelity_over_subsets(self):
        a, b = RNG.standard_normal((300, 8)), RNG.standard_normal((500, 8)) + 0.3
        tensors = torch.from_numpy(a), torch.from_numpy(b)
        peer = kid_features_to_metric(*tensors, kid_subsets=400, kid_subset_size=100, verbose=False)
        error = peer["kernel_inception_distance_std"] / 20
        assert kernel_distance(a, b) == pytest.approx(peer["kernel_inception_distance_mean"], abs=4 * error)

    def test_kid_is_unbiased(self):
        values = [kernel_distance(RNG.standard_normal((20, 4)), RNG.standard_normal((30, 4))) for _ in range(400)]
        assert abs(np.mean(values)) < 3 * np.std(values) / 20
        assert min(values) < 0

    def test_kid_blocks_stay_unbiased(self, monkeypatch):
        a, b = RNG.standard_normal((50, 4)), RNG.standard_normal((401, 4))
        exact = kernel_within(b)
        assert kernel_distance(a, b, exact) == kernel_distance(a, b)
        monkeypatch.setattr("ddpm.evaluation.fid.KERNEL_BLOCK", 100)
        estimates = [kernel_within(RNG.permutation(b)) for _ in range(100)]
        assert np.mean(estimates) == pytest.approx(exact, abs=3 * np.std(estimates) / 10)

    def test_kid_does_not_depend_on_chunks_and_processes(self, monkeypatch):
        a, b = RNG.standard_normal((50, 4)), RNG.standard_normal((80, 4)) + 1
        whole = kernel_distance(a, b)
        monkeypatch.setattr("ddpm.evaluation.prdc.ELEMENTS", 300)
        alone = kernel_distance(a, b)
        assert alone == pytest.approx(whole, rel=1e-12)
        for count in (2, 3):
            assert in_processes(count, lambda: kernel_distance(a, b)) == [alone] * count


def test_inception_score_limits_and_torch_fidelity():
    assert inception_score(np.tile(np.eye(10), (20, 1))) == pytest.approx(10)
    assert inception_score(np.full((50, 10), 0.1)) == pytest.approx(1)
    assert inception_score(np.tile(np.eye(10)[:4], (20, 1))) == pytest.approx(4), "classes that are never predicted"
    logits = torch.from_numpy(RNG.standard_normal((300, 12)) * 3)
    peer = isc_features_to_metric(logits, splits=1, shuffle=False)["inception_score_mean"]
    assert inception_score(logits.softmax(1).numpy()) == pytest.approx(peer, rel=1e-10)


def test_sets_are_disjoint_and_of_equal_size():
    sets = disjoint_sets(103, 25, seed=0)
    assert [len(s) for s in sets] == [25] * 4
    assert len(np.unique(np.concatenate(sets))) == 100
    labels = np.arange(103) % 5
    assert [np.bincount(labels[part]).tolist() for part in consecutive_sets(103, 25)] == [[5] * 5] * 4
