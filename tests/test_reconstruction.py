"""Scores of the model on held-out images: PSNR, the Wiener filter, round trips and likelihood."""

import numpy as np
import pytest
import torch
from evaluation_data import CPU, digits_data, untrained_classifier
from oracles import gaussian_denoiser
from torchmetrics.image import PeakSignalNoiseRatio

from ddpm.data.images import to_model_range, to_tensor
from ddpm.data.prepared import held_out
from ddpm.diffusion.schedule import make_schedule
from ddpm.evaluation.likelihood import likelihood
from ddpm.evaluation.reconstruction import (
    FRACTIONS,
    WienerFilter,
    level_at,
    noisy_pairs,
    psnr,
    reconstruct,
    round_trips,
    round_trips_if_trained,
    zero_denoiser,
)
from ddpm.sampling.model import DiffusionModel

RNG = np.random.default_rng(0)
SHAPE = {"shape": [4, 4, 1]}


class Scaled(torch.nn.Module):
    """Predicts x_t times a factor; with `learns`, a variance between the fixed ones too."""

    def __init__(self, factor=0.6, learns=False):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))
        self.outputs = 2 if learns else 1

    def forward(self, x, t, labels):
        out = self.factor * x
        return torch.cat([out, torch.full_like(x, -0.2)], dim=1) if self.outputs == 2 else out


def scaled_model(**options):
    return DiffusionModel(Scaled(**options), make_schedule("cosine", 30), "x0", SHAPE)


class TestPSNR:
    def test_psnr_of_known_offsets(self):
        x = torch.zeros(3, 1, 8, 8)
        # An offset of 0.1 in a range of 1 is 0.2 in a range of 2.
        assert psnr(x + 0.2, x).tolist() == pytest.approx([20.0] * 3, abs=1e-5)
        assert psnr(x, x).tolist() == [100.0] * 3
        with pytest.raises(ValueError, match="shapes differ"):
            psnr(x, x[:1])

    def test_psnr_is_the_mean_over_images_of_torchmetrics(self):
        a, b = torch.rand(2, 6, 3, 8, 8) * 2 - 1
        peer = PeakSignalNoiseRatio(data_range=2.0, reduction="elementwise_mean", dim=(1, 2, 3))
        assert float(psnr(a, b).mean()) == pytest.approx(float(peer(a, b)), rel=1e-5)

    def test_psnr_without_denoising_at_a_quarter_of_the_linear_schedule(self):
        """Without clipping, x_t / alpha is off by sigma / alpha for any image: 6.39 dB at t = 250."""
        x0 = torch.rand(400, 1, 28, 28) * 2 - 1
        x_t, level = noisy_pairs(x0, make_schedule("linear", 1000), 251, torch.Generator().manual_seed(0))
        assert float(psnr(x_t / level.alpha, x0).mean()) == pytest.approx(6.39, abs=0.05)
        assert float(psnr(zero_denoiser(x_t, level), x0).mean()) > 6.39


class TestWiener:
    def test_wiener_is_better_than_no_denoising(self):
        data = digits_data()
        wiener = WienerFilter(data.train.images, seed=0)
        x0 = to_model_range(to_tensor(data.test.images))
        schedule = make_schedule("linear", 1000)
        for fraction in FRACTIONS:
            x_t, level = noisy_pairs(x0, schedule, level_at(schedule, fraction), torch.Generator().manual_seed(1))
            denoised = wiener(x_t, level)
            assert denoised.shape == x0.shape
            assert psnr(denoised, x0).mean() > psnr(zero_denoiser(x_t, level), x0).mean()

    def test_wiener_equals_the_posterior_mean_of_a_gaussian(self):
        images = RNG.integers(100, 156, (50, 2, 2, 1), np.uint8)
        flat = images.reshape(50, 4) / 127.5 - 1
        mean, covariance = flat.mean(0), np.cov(flat.T)
        level = make_schedule("linear", 1000)[100]
        a, s = float(level.alpha), float(level.sigma)
        x_t = RNG.standard_normal((3, 4)) * 0.1
        gain = a * covariance @ np.linalg.inv(a**2 * covariance + s**2 * np.eye(4))
        expected = mean + (x_t - a * mean) @ gain.T
        result = WienerFilter(images, 0)(torch.from_numpy(x_t).reshape(3, 1, 2, 2), level)
        np.testing.assert_allclose(result.reshape(3, 4), expected, rtol=1e-8, atol=1e-10)

    def test_wiener_of_many_pixels_is_the_same_filter(self, monkeypatch):
        data = digits_data()
        x0 = to_model_range(to_tensor(data.test.images[:5]))
        x_t, level = noisy_pairs(x0, make_schedule("linear", 100), 25, torch.Generator())
        direct = WienerFilter(data.train.images, 0)(x_t, level)
        monkeypatch.setattr("ddpm.evaluation.reconstruction.WIENER_LIMIT", 60)
        monkeypatch.setattr("ddpm.evaluation.reconstruction.WIENER_IMAGES", 10_000)
        torch.testing.assert_close(WienerFilter(data.train.images, 0)(x_t, level), direct, atol=1e-6, rtol=0)


def test_reconstruct_of_a_network_that_predicts_no_noise_is_the_zero_baseline():
    model = DiffusionModel(Scaled(0.0), make_schedule("linear", 1000), "eps", {})
    result = reconstruct(model, digits_data(), untrained_classifier(), 300, 0)
    assert result.scores["psnr"] == pytest.approx(result.scores["psnr_zero"], rel=1e-6)
    assert result.scores["psnr"] < result.scores["psnr_wiener"]
    assert (result.scores["level"], result.scores["n"]) == (250, 300)
    assert result.scores["lpips"]["status"] == "weights missing"
    assert len(result.curve) == 3 * len(FRACTIONS)
    assert set(result.examples) == {"clean", "noisy", "network", "wiener", "zero"}


class TestRoundTrip:
    def test_round_trips_of_an_untrained_network_are_perfect_and_skipped(self):
        model = DiffusionModel(Scaled(0.0), make_schedule("linear", 60), "eps", {"shape": [8, 8, 1]})
        x0, labels = held_out(digits_data(), 30, 0, CPU)
        trips = round_trips(model, x0, labels)
        assert set(trips.scores) == {"n", "steps_10", "steps_20", "steps_50"}
        assert all(trips.scores[f"steps_{steps}"]["psnr"] > 99 for steps in (10, 20, 50))
        assert trips.examples["clean"].shape == trips.examples["steps_10"].shape == (8, 1, 8, 8)
        skipped = round_trips_if_trained(model, x0, labels, {"psnr": 9.0, "psnr_wiener": 15.0})
        assert skipped.scores["status"].startswith("not measured")
        assert round_trips_if_trained(model, x0, labels, {"psnr": 16.0, "psnr_wiener": 15.0}).scores == trips.scores

    def test_round_trips_improve_with_more_steps(self):
        schedule = make_schedule("cosine", 100)

        class Best(Scaled):
            def forward(self, x, t, labels):
                return gaussian_denoiser(0.0, 0.5)(x, schedule[float(t[0]) + 1]).x0

        x0 = (0.5 * torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
        scores = round_trips(DiffusionModel(Best(), schedule, "x0", {}), x0, torch.zeros(50, dtype=torch.int64)).scores
        errors = [scores[f"steps_{steps}"]["mse"] for steps in (10, 20, 50, 100)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < errors[0] / 10
        assert scores["steps_100"]["latent_sd"] == pytest.approx(1, abs=0.1)


class TestLikelihood:
    x0 = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.zeros(40, dtype=torch.int64)

    @pytest.mark.parametrize("learns", [False, True])
    def test_likelihood_of_all_levels_adds_up_to_the_bound(self, learns):
        result = likelihood(scaled_model(learns=learns), self.x0, self.labels, None, 0)
        assert result.scores["evaluations"] == 30
        assert result.level.tolist() == list(range(1, 31))
        assert set(result.curve) == {"small", "large"} | ({"learned"} if learns else set())
        for name, bits in result.curve.items():
            scores = result.scores[name]
            assert scores["bits_per_dim"] == pytest.approx(result.scores["prior"] + bits.sum(), rel=1e-9)
            assert scores["decoder"] == pytest.approx(bits[0])
            assert scores["steps"] == pytest.approx(bits[1:].sum())
            assert 0 < scores["bits_per_dim_se"] < 1
        assert len({result.scores[name]["bits_per_dim"] for name in result.curve}) == len(result.curve)

    def test_likelihood_of_some_levels_is_unbiased(self):
        def bits(levels, seed):
            return likelihood(scaled_model(), self.x0, self.labels, levels, seed).scores["large"]["bits_per_dim"]

        exact = np.mean([bits(None, seed) for seed in range(10)])
        some = [bits(4, seed) for seed in range(150)]
        assert np.mean(some) == pytest.approx(exact, abs=4 * np.std(some) / len(some) ** 0.5)
        assert np.std(some) < 0.1 * exact

    def test_likelihood_of_a_perfect_network_is_the_decoder(self):
        x0 = to_model_range(torch.randint(0, 256, (1, 1, 4, 4)))

        class Perfect(Scaled):
            def forward(self, x, t, labels):
                return x0.expand_as(x)

        model = DiffusionModel(Perfect(), make_schedule("linear", 1000), "x0", SHAPE)
        scores = likelihood(model, x0.expand(3, -1, -1, -1), self.labels[:3], 50, 0).scores
        assert scores["small"]["steps"] == pytest.approx(0, abs=1e-6)
        assert scores["small"]["bits_per_dim"] == pytest.approx(scores["prior"] + scores["small"]["decoder"], abs=1e-6)
        assert scores["large"]["steps"] > 1e-3

    @pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
    def test_likelihood_and_round_trips_with_zero_terminal_snr(self, prediction):
        schedule = make_schedule("cosine", 20, zero_terminal_snr=True)
        model = DiffusionModel(Scaled(), schedule, prediction, SHAPE)
        scores = likelihood(model, self.x0, self.labels, None, 0).scores
        assert scores["prior"] == pytest.approx(0, abs=1e-12)
        assert np.isfinite(scores["small"]["bits_per_dim"])
        assert np.isfinite(round_trips(model, self.x0, self.labels).scores["steps_10"]["psnr"])
