"""Noise schedules against diffusers, published numbers and their own identities."""

import math
import re

import diffusers
import numpy as np
import pytest
import torch
from conftest import diffusion, error_of
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ddpm.core.files import InputError
from ddpm.diffusion.prediction import PREDICTIONS, check_prediction
from ddpm.diffusion.schedule import (
    SCHEDULES,
    NoiseSchedule,
    add_more_noise,
    add_noise,
    combine,
    cosine,
    edm,
    make_schedule,
    rescale_to_zero_terminal_snr,
    sigmoid,
)


def peer(name, **options):
    """alpha_bar of diffusers, in the precision that it has."""
    return diffusers.DDPMScheduler(1000, beta_schedule=name, **options).alphas_cumprod.double()


def test_schedules_equal_diffusers():
    options = {"atol": 1e-6, "rtol": 2e-5}
    torch.testing.assert_close(SCHEDULES["linear"](1000), peer("linear"), **options)
    torch.testing.assert_close(
        SCHEDULES["scaled_linear"](1000), peer("scaled_linear", beta_start=8.5e-4, beta_end=0.012), **options
    )
    torch.testing.assert_close(SCHEDULES["quadratic"](1000), peer("scaled_linear", beta_start=1e-4, beta_end=0.02), **options)
    torch.testing.assert_close(cosine(1000), peer("squaredcos_cap_v2"), atol=1e-6, rtol=1e-3)


def test_linear_is_that_of_the_paper():
    alpha_bar = SCHEDULES["linear"](1000)
    assert 1 - alpha_bar[0] == pytest.approx(1e-4, rel=1e-12)
    assert 1 - alpha_bar[-1] / alpha_bar[-2] == pytest.approx(0.02, rel=1e-9)
    assert alpha_bar[-1] == pytest.approx(4.036e-5, rel=1e-3)


@pytest.mark.parametrize(("s", "max_beta"), [(0.008, 0.999), (0.02, 0.5)])
def test_cosine_follows_its_curve_and_caps_the_last_betas(s, max_beta):
    alpha_bar = cosine(1000, s, max_beta)
    t = torch.arange(1001, dtype=torch.float64) / 1000
    curve = torch.cos((t + s) / (1 + s) * torch.pi / 2).square()
    torch.testing.assert_close(alpha_bar[:-3], (curve / curve[0])[1:-3], rtol=1e-9, atol=0)
    assert 1 - alpha_bar[-1] / alpha_bar[-2] == pytest.approx(max_beta)
    if max_beta == 0.999:
        assert alpha_bar[-1] == pytest.approx(2.43e-9, rel=5e-3)


@pytest.mark.parametrize(("start", "end", "tau"), [(-3.0, 3.0, 1.0), (0.0, 3.0, 0.7)])
def test_sigmoid_follows_its_curve(start, end, tau):
    alpha_bar = sigmoid(500, start, end, tau)
    logistic = 1 / (1 + np.exp(-(start + (end - start) * np.arange(1, 500) / 500) / tau))
    first, last = (1 / (1 + math.exp(-v / tau)) for v in (start, end))
    np.testing.assert_allclose(alpha_bar[:-1], (last - logistic) / (last - first), rtol=1e-9)
    assert 1 - alpha_bar[-1] / alpha_bar[-2] == pytest.approx(0.999)


def test_edm_has_the_sigmas_of_diffusers():
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    scheduler.set_timesteps(200)
    level = make_schedule("edm", 200)[torch.arange(200, 0, -1)]
    torch.testing.assert_close(level.sigma / level.alpha, scheduler.sigmas[:-1].double(), rtol=1e-5, atol=0)
    ends = make_schedule("edm", 50, sigma_min=0.1, sigma_max=30.0, rho=3.0)
    assert ends[1].sigma / ends[1].alpha == pytest.approx(0.1)
    assert ends[50].sigma / ends[50].alpha == pytest.approx(30)
    middle = np.cbrt([ends[i].sigma / ends[i].alpha for i in (1, 2, 3)])
    assert middle[1] - middle[0] == pytest.approx(middle[2] - middle[1])
    assert edm(50)[0] > edm(50)[1]


@pytest.mark.parametrize("name", SCHEDULES)
def test_zero_terminal_snr_equals_diffusers(name):
    """Lin et al. 2024: the last level has no signal, the first is unchanged."""
    alpha_bar = SCHEDULES[name](1000)
    ours = rescale_to_zero_terminal_snr(alpha_bar)
    betas = 1 - alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]])
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    assert ours[-1] == 0
    assert ours[0] == pytest.approx(float(alpha_bar[0]), rel=1e-14)
    schedule = diffusion(zero_terminal_snr=True).make(name)
    assert (schedule[1000].alpha, schedule[1000].sigma) == (0, 1)
    assert error_of(check_prediction, "eps", schedule).key == "prediction"
    for prediction in PREDICTIONS:
        check_prediction(prediction, make_schedule(name, 1000))
        if prediction != "eps":
            check_prediction(prediction, schedule)


def test_committed_options_are_the_defaults():
    section = diffusion()
    for name, schedule in SCHEDULES.items():
        index = torch.arange(1, 1001)
        assert torch.equal(section.make(name)[index].alpha, make_schedule(name, 1000)[index].alpha)
        assert len(schedule(10)) == 10
    assert torch.equal(cosine(1000), cosine(1000, s=0.008, max_beta=0.999))
    assert torch.equal(sigmoid(1000), sigmoid(1000, start=-3, end=3, tau=1))
    assert torch.equal(edm(1000), edm(1000, sigma_min=0.002, sigma_max=80, rho=7))


OPTIONS = {
    "cosine": {"s": st.floats(0, 1), "max_beta": st.floats(1e-6, 0.999999)},
    "sigmoid": {"start": st.floats(-30, 30), "end": st.floats(-30, 30), "tau": st.floats(0.1, 10)},
    "edm": {"sigma_min": st.floats(1e-5, 1e5), "sigma_max": st.floats(1e-5, 1e5), "rho": st.floats(1, 100)},
}


@pytest.mark.parametrize("name", OPTIONS)
@given(data=st.data())
def test_any_options_give_a_schedule_or_an_error_with_them(name, data):
    options = data.draw(st.fixed_dictionaries(OPTIONS[name]))
    steps, zero = data.draw(st.integers(2, 3000)), data.draw(st.booleans())
    message, schedule = "", None
    try:
        schedule = diffusion(steps, zero_terminal_snr=zero, **{name: options}).make(name)
    except (ValidationError, InputError) as error:
        message = str(error)
    if schedule is None:
        assert re.search(rf"needs (start below end|sigma_min below)|^params.yaml: schedule: .*\(diffusion.{name}: ", message)
        return
    level = schedule[torch.arange(1, steps + 1)]
    assert (level.alpha.diff() < 0).all()
    assert (level.sigma.diff() >= 0).all()
    assert level.sigma.min() > 0


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
@given(steps=st.one_of(st.integers(2, 30), st.integers(2, 2000)))
def test_schedules_decrease_to_noise_for_any_length(name, zero, steps):
    schedule = diffusion(steps, zero_terminal_snr=zero).make(name)
    level = schedule[torch.arange(steps + 1)]
    assert level.alpha[0] == 1
    assert level.sigma[0] == 0
    assert (level.alpha.diff() < 0).all()
    assert (level.sigma.diff() > 0).all()
    assert (np.diff(schedule.log_ratio) < 0).all()
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones(steps + 1, dtype=torch.float64))
    assert level.alpha[-1] ** 2 < 0.01
    assert level.t.tolist() == [0, *range(steps)]
    for i in (0, 1, steps // 2, steps):
        assert tuple(schedule[i]) == tuple(float(v[i]) for v in level)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "quadratic"])
def test_betas_scale_with_the_number_of_steps(name):
    """alpha_bar agrees at equal t / T, and T = 128 ends in noise as T = 1000 does."""
    coarse, fine = make_schedule(name, 500), make_schedule(name, 1000)
    for i in (50, 125, 250, 375):
        assert coarse[i].alpha == pytest.approx(fine[2 * i].alpha, rel=0.02)
    assert make_schedule(name, 128)[128].alpha == pytest.approx(fine[1000].alpha, abs=0.01)


@pytest.mark.parametrize("name", SCHEDULES)
@given(position=st.floats(1, 200))
def test_position_between_levels_is_a_level(name, position):
    schedule = make_schedule(name, 200)
    level = schedule[position]
    below, above = schedule[math.floor(position)], schedule[math.ceil(position)]
    assert above.alpha - 1e-12 <= level.alpha <= below.alpha + 1e-12
    assert below.sigma - 1e-12 <= level.sigma <= above.sigma + 1e-12
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-14)
    assert level.t == pytest.approx(position - 1)
    (inverse,) = schedule.position(np.array([math.log(level.alpha / level.sigma)]))
    assert inverse == pytest.approx(position, abs=1e-6)


def test_log_snr_is_linear_between_levels():
    schedule = make_schedule("linear", 100)
    ratios = [math.log(schedule[p].alpha / schedule[p].sigma) for p in (40, 40.25, 41)]
    assert ratios[1] == pytest.approx(0.75 * ratios[0] + 0.25 * ratios[2], rel=1e-12)


def test_last_level_with_signal_is_refused_unless_allowed():
    unscaled = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 128, dtype=torch.float64), 0)
    assert unscaled[-1] == pytest.approx(0.274, abs=1e-3)
    with pytest.raises(InputError, match=r"^schedule: alpha_bar is 0.274 at the last of 128 steps"):
        NoiseSchedule(unscaled)
    assert NoiseSchedule(unscaled, allow_nonzero_terminal_snr=True).steps == 128
    weak = {"edm": {"sigma_min": 0.002, "sigma_max": 5.0, "rho": 7.0}}
    with pytest.raises(InputError, match=r"alpha_bar is 0.0385 at the last of 1000 steps"):
        diffusion(**weak).make("edm")
    assert diffusion(**weak, allow_nonzero_terminal_snr=True).make("edm")[1000].alpha == pytest.approx(1 / math.sqrt(26))
    assert diffusion(**weak, zero_terminal_snr=True).make("edm")[1000].alpha == 0


INVALID = [[0.9, 0.9, 0.001], [0.5, 0.6, 0.001], [1.0, 0.5, 0.001], [0.5, 0.1, -0.1], [0.5, float("nan"), 0.001]]


@pytest.mark.parametrize("alpha_bar", INVALID)
def test_alpha_bar_must_decrease_inside_0_and_1(alpha_bar):
    with pytest.raises(InputError, match="schedule: alpha_bar must decrease"):
        NoiseSchedule(torch.tensor(alpha_bar))


def test_make_schedule_lists_the_valid_names():
    message = error_of(make_schedule, "cosin", 100).message
    assert "did you mean 'cosine'? Valid: linear, scaled_linear, quadratic, cosine, sigmoid, edm" in message


def test_add_noise_has_its_mean_and_deviation():
    schedule = make_schedule("linear", 1000)
    x0 = torch.full((4000, 1, 2, 2), 0.5, dtype=torch.float64)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = add_noise(x0, eps, schedule[torch.full((4000,), 300)])
    level = schedule[300]
    torch.testing.assert_close(x, level.alpha * x0 + level.sigma * eps)
    assert x.mean() == pytest.approx(0.5 * level.alpha, abs=0.02)
    assert x.std() == pytest.approx(level.sigma, abs=0.02)


@given(start=st.integers(0, 999), increase=st.integers(1, 1000))
def test_add_more_noise_composes_to_the_higher_level(start, increase):
    """q(x_s | x_t) after q(x_t | x0) is q(x_s | x0): means and variances agree."""
    schedule = make_schedule("cosine", 1000)
    t, s = schedule[start], schedule[min(1000, start + increase)]
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    signal = float(add_more_noise(t.alpha * one, zero, t, s))
    variance = float(add_more_noise(t.sigma * one, zero, t, s)) ** 2 + float(add_more_noise(zero, one, t, s)) ** 2
    assert signal == pytest.approx(s.alpha, rel=1e-12)
    assert variance == pytest.approx(s.sigma**2, rel=1e-12)


def test_combine_is_a_weighted_sum_of_floats_and_tensors():
    x, y = torch.randn(2, 3, 1, 2, 2, dtype=torch.float64)
    for a, b in ((2.0, -3.0), (1.0, 0.5), (0.0, 1.0)):
        torch.testing.assert_close(combine(a, x, b, y), a * x + b * y)
        torch.testing.assert_close(combine(torch.tensor(a), x, torch.tensor(b), y), a * x + b * y)


def test_level_like_has_dtype_and_dimensions_of_the_images():
    schedule = make_schedule("cosine", 10)
    level = schedule[torch.tensor([1, 5])].like(torch.zeros(2, 3, 4, 4))
    assert level.alpha.shape == (2, 1, 1, 1)
    assert level.alpha.dtype == torch.float32
    assert schedule[5].like(torch.zeros(2, 3, 4, 4)) == schedule[5]
