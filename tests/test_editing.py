"""Inversion and inpainting."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles import LINEAR, gaussian_denoiser, noises, nonlinear_network, ode_end, rule, run

from ddpm.diffusion.parameterization import PREDICTIONS
from ddpm.diffusion.schedule import make_schedule
from ddpm.files import InputError
from ddpm.sampling.denoiser import network_denoiser
from ddpm.sampling.editing import inpainting, invert, round_trip
from ddpm.sampling.grid import make_grid
from ddpm.sampling.samplers import sample


def error(steps, denoiser, schedule=LINEAR):
    x0 = 0.3 + 0.5 * noises(1)[0]
    _, decoded = round_trip(denoiser, schedule, make_grid("trailing", schedule, steps), x0)
    return float((decoded - x0).abs().mean())


def test_the_error_of_the_round_trip_falls_as_1_over_n():
    errors = [error(steps, gaussian_denoiser()) for steps in (100, 200, 400)]
    assert errors[0] < 0.2
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2, abs=0.35)


def test_the_latent_is_the_end_of_the_probability_flow():
    schedule = make_schedule("cosine", 4000)
    x0 = 0.3 + 0.5 * noises(1)[0]
    *_, last = invert(gaussian_denoiser(), schedule, make_grid("log_snr", schedule, 4000), x0)
    torch.testing.assert_close(last.x, ode_end(x0, schedule, 0, 4000), atol=0.02, rtol=0)


def test_a_network_that_sees_no_noise_makes_a_perfect_round_trip():
    silent = network_denoiser(lambda x, t, labels: torch.zeros_like(x), "eps", None)
    assert error(10, silent) < 1e-13


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_can_be_inverted_from_the_clean_level(prediction):
    grid = make_grid("trailing", LINEAR, 50)
    denoiser = network_denoiser(lambda *a: 0.1 * nonlinear_network(*a), prediction, None)
    frames = list(invert(denoiser, LINEAR, grid, 0.5 * noises(1)[0]))
    assert [frame.position for frame in frames] == grid[::-1][1:].tolist()
    assert all(frame.x.isfinite().all() for frame in frames)


def test_the_first_step_up_adds_the_noise_that_the_network_sees_at_level_1():
    x0 = noises(1)[0]
    denoiser = network_denoiser(nonlinear_network, "v", None)
    frame = next(invert(denoiser, LINEAR, np.array([300.0, 0.0]), x0))
    torch.testing.assert_close(frame.x, LINEAR[300].alpha * x0 + LINEAR[300].sigma * denoiser(x0, LINEAR[1]).eps)


def test_sampling_with_eta_cannot_be_inverted():
    with pytest.raises(InputError, match=r"eta: 0.5 cannot be inverted.* only eta = 0 can"):
        invert(gaussian_denoiser(), LINEAR, make_grid("trailing", LINEAR, 10), torch.zeros(1, 1, 2, 2), eta=0.5)


NAMES = {"ancestral": {"variance": "small"}, "ddim": {"eta": 0.5}, "dpmpp_2m": {}}


@pytest.mark.parametrize("name", NAMES)
def test_inpainting_returns_the_known_pixels_exactly_and_fills_the_others(name):
    image, mask = noises(1, seed=1)[0], torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    x, *noise = noises(60)
    known = iter(noises(60, seed=2))
    step = inpainting(rule(name, **NAMES[name]), image, mask, lambda: next(known))
    out = run(step, make_grid("trailing", LINEAR, 20), x, noise)
    assert torch.equal(out[..., :2], image[..., :2])
    assert not torch.isclose(out[..., 2:], image[..., 2:]).any()


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_mask_is_plain_sampling(name):
    x, *noise = noises(60)
    plain = rule(name, **NAMES[name])
    grid = make_grid("trailing", LINEAR, 20)
    step = inpainting(plain, torch.ones_like(x), torch.zeros(1, 1, 4, 4), lambda: torch.randn_like(x))
    assert torch.equal(run(step, grid, x, noise), run(plain, grid, x, noise))


def test_known_pixels_agree_with_the_level_on_the_way():
    """Half of the image is known: at each level it is q(x_s | x0)."""
    image, mask = torch.ones(500, 1, 4, 4, dtype=torch.float64), torch.ones(1, 1, 1, 1)
    x = torch.randn(image.shape, dtype=torch.float64)
    step = inpainting(rule("ddim", eta=0.0), image, mask, lambda: torch.randn_like(x))
    denoiser = network_denoiser(nonlinear_network, "v", None)
    for frame in sample(denoiser, step, LINEAR, np.array([1000.0, 600, 300, 0]), x, lambda: None):
        level = LINEAR[frame.position]
        assert frame.x.mean() == pytest.approx(level.alpha, abs=0.05)
        assert frame.x.std() == pytest.approx(level.sigma, abs=0.05)


@pytest.mark.parametrize("shape", [(4, 4), (2, 1), (3, 1, 4, 4), (2, 1, 4, 5), (2, 2, 4, 4)])
def test_a_mask_must_fit_the_images(shape):
    with pytest.raises(InputError, match=r"mask: shape \(.*\) does not fit images of \(2, 1, 4, 4\)"):
        inpainting(rule("euler"), torch.zeros(2, 1, 4, 4), torch.zeros(shape), lambda: None)
