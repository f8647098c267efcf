"""Noise schedules against published numbers and their own identities."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm.diffusion.schedule import SCHEDULES, NoiseSchedule, add_noise, cosine, linear, make_schedule
from ddpm.files import InputError


def test_linear_is_the_papers():
    alpha_bar = linear(1000)
    assert 1 - alpha_bar[0] == pytest.approx(1e-4, rel=1e-12)
    assert 1 - alpha_bar[-1] / alpha_bar[-2] == pytest.approx(0.02, rel=1e-9)
    assert alpha_bar[-1] == pytest.approx(4.036e-5, rel=1e-3)


def test_cosine_follows_its_curve_and_caps_only_the_last_beta():
    alpha_bar = cosine(1000)
    t = torch.arange(1001, dtype=torch.float64) / 1000
    curve = torch.cos((t + 0.008) / 1.008 * torch.pi / 2).square()
    torch.testing.assert_close(alpha_bar[:-1], (curve / curve[0])[1:-1], rtol=1e-9, atol=0)
    assert 1 - alpha_bar[-1] / alpha_bar[-2] == pytest.approx(0.999)
    assert alpha_bar[-1] == pytest.approx(2.43e-9, rel=5e-3)


@pytest.mark.parametrize("name", SCHEDULES)
@given(steps=st.integers(20, 2000))
def test_every_length_ends_in_noise_and_falls(name, steps):
    schedule = make_schedule(name, steps)
    level = schedule[torch.arange(steps + 1)]
    assert level.alpha[0] == 1
    assert level.sigma[0] == 0
    assert (level.alpha.diff() < 0).all()
    assert (level.sigma.diff() > 0).all()
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones(steps + 1, dtype=torch.float64))
    assert level.alpha[-1] ** 2 < 0.01
    assert level.t.tolist() == [0, *range(steps)]


def test_betas_made_for_1000_steps_are_refused_at_128():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)[:128]
    unscaled = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 128, dtype=torch.float64), 0)
    assert unscaled[-1] == pytest.approx(0.274, abs=1e-3)
    for alpha_bar in (unscaled, torch.cumprod(1 - betas, 0)):
        with pytest.raises(InputError, match=r"last of 128 steps .*use more steps or larger betas"):
            NoiseSchedule(alpha_bar)


NOT_FALLING = [[0.9, 0.9, 0.001], [0.5, 0.6, 0.001], [1.0, 0.5, 0.001], [0.5, 0.1, 0.0], [0.5, float("nan"), 0.001]]


@pytest.mark.parametrize("alpha_bar", NOT_FALLING)
def test_alpha_bar_must_fall_inside_0_and_1(alpha_bar):
    with pytest.raises(InputError, match="fall strictly"):
        NoiseSchedule(torch.tensor(alpha_bar))


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(InputError, match=r"did you mean 'cosine'\? Valid: linear, cosine"):
        make_schedule("cosin", 100)


def test_add_noise_has_the_stated_law():
    schedule = make_schedule("linear", 1000)
    x0 = torch.full((4000, 1, 2, 2), 0.5, dtype=torch.float64)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    index = torch.full((4000,), 300)
    x = add_noise(x0, eps, schedule[index])
    level = schedule[300]
    torch.testing.assert_close(x, level.alpha * x0 + level.sigma * eps)
    assert x.mean() == pytest.approx(float(0.5 * level.alpha), abs=0.02)
    assert x.std() == pytest.approx(float(level.sigma), abs=0.02)


def test_levels_take_the_dtype_of_the_images_and_broadcast_per_image():
    schedule = make_schedule("cosine", 10)
    level = schedule[torch.tensor([1, 5])].like(torch.zeros(2, 3, 4, 4))
    assert level.alpha.shape == (2, 1, 1, 1)
    assert level.alpha.dtype == torch.float32
    assert schedule[5].like(torch.zeros(2, 3, 4, 4, dtype=torch.float64)).alpha.shape == ()
