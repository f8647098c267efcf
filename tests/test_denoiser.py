"""Denoisers: the network as one, clipping, dynamic thresholding, guidance."""

import numpy as np
import pytest
import torch
from conftest import input_error
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from oracles import LINEAR, nonlinear_network

from ddpm.diffusion.prediction import Prediction, target
from ddpm.sampling.denoiser import THRESHOLDS, guided, network_denoiser, one_step, thresholded

PLAIN = network_denoiser(nonlinear_network, "eps", None)


def images(count=4, scale=3.0):
    return scale * torch.randn(count, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", THRESHOLDS)
def test_thresholded_bounds_x0_and_keeps_eps_consistent(name):
    x, level = images(), LINEAR[300]
    result = thresholded(PLAIN, name, 0.9)(x, level)
    torch.testing.assert_close(level.alpha * result.x0 + level.sigma * result.eps, x)
    if name == "none":
        assert torch.equal(result.x0, PLAIN(x, level).x0)
        assert result.x0.abs().max() > 1
    else:
        assert result.x0.abs().max() <= 1
        assert torch.equal(result.x0, THRESHOLDS[name](PLAIN(x, level).x0, 0.9))
        assert (result.x0 * PLAIN(x, level).x0 >= 0).all()


def test_dynamic_thresholding_agrees_with_diffusers():
    scheduler = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=0.8, sample_max_value=1e9)
    x0 = images(scale=2.0).float()
    torch.testing.assert_close(THRESHOLDS["dynamic"](x0, 0.8), scheduler._threshold_sample(x0))
    # Each image has its own limit, and one that fits is left alone.
    mixed = torch.cat([x0[:1], x0[1:2] / x0[1].abs().max()])
    assert torch.equal(THRESHOLDS["dynamic"](mixed, 0.8)[1], mixed[1])


def conditional(x, level):
    return PLAIN(x, level)


def unconditional(x, level):
    return Prediction(PLAIN(0.5 * x, level).x0, x, level, torch.zeros_like(x))


@pytest.mark.parametrize(("scale", "same"), [(0.0, unconditional), (1.0, conditional)])
@given(index=st.integers(1, 1000))
def test_guided_0_and_1_are_unconditional_and_conditional_bit_for_bit(scale, same, index):
    x, level = images(), LINEAR[index]
    result = guided(conditional, unconditional, scale)(x, level)
    assert torch.equal(result.x0, same(x, level).x0)
    assert torch.equal(result.eps, same(x, level).eps)


@pytest.mark.parametrize("scale", [0.5, 2.0, 7.5])
def test_guided_extrapolates_from_unconditional_over_conditional(scale):
    x, level = images(), LINEAR[400]
    towards, base = conditional(x, level), unconditional(x, level)
    result = guided(conditional, unconditional, scale)(x, level)
    torch.testing.assert_close(result.eps, base.eps + scale * (towards.eps - base.eps))
    torch.testing.assert_close(result.x0, base.x0 + scale * (towards.x0 - base.x0))
    assert result.variance_interp is towards.variance_interp


def test_guided_keeps_to_its_interval():
    x = images()
    guide = guided(conditional, unconditional, 3.0, interval=(0.5, 2.0))
    for index in (1, 100, 200, 300, 400, 500, 800):
        level = LINEAR[index]
        outside = not 0.5 <= level.sigma / level.alpha <= 2.0
        assert torch.equal(guide(x, level).x0, conditional(x, level).x0) == outside


def test_network_denoiser_needs_one_label_per_image():
    for count in (1, 5):
        with input_error("labels"):
            network_denoiser(nonlinear_network, "eps", torch.zeros(count, dtype=torch.int64))(images(), LINEAR[10])


def test_one_step_with_the_true_noise_returns_the_image():
    x0, eps = torch.rand(2, 3, 1, 4, 4, dtype=torch.float64) * 2 - 1
    level = LINEAR[250]
    oracle = network_denoiser(lambda *inputs: target("v", x0, eps, level), "v", None)
    torch.testing.assert_close(one_step(oracle, level.alpha * x0 + level.sigma * eps, level), x0)


def test_network_denoiser_passes_the_time_of_the_level_for_every_image():
    times = []
    denoise = network_denoiser(lambda x, t, labels: times.append(t) or x, "eps", None)
    for position in (41, 41.5):
        denoise(images(3), LINEAR[position])
    np.testing.assert_array_equal(torch.stack(times), [[40.0] * 3, [40.5] * 3])


def test_network_denoiser_reads_the_variance_from_the_second_half_of_the_channels():
    def network(x, t, labels):
        return torch.cat([nonlinear_network(x, t), torch.full_like(x, -0.5)], dim=1)

    x, level = images(), LINEAR[300]
    result = thresholded(network_denoiser(network, "eps", None))(x, level)
    assert result.variance_interp.unique().tolist() == [0.25]
    assert torch.equal(result.x0, thresholded(PLAIN)(x, level).x0)
