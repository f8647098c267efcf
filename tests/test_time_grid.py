"""Grids: the levels that a sampler visits, for every schedule, length and number of steps."""

import diffusers
import numpy as np
import pytest
from conftest import diffusion, input_error
from hypothesis import given
from hypothesis import strategies as st

from ddpm.diffusion.schedule import SCHEDULES, make_schedule
from ddpm.sampling.time_grid import MAX_CHURN, SPACINGS, denoising_steps, make_grid, with_churn

LINEAR = make_schedule("linear", 1000)


@pytest.mark.parametrize("spacing", SPACINGS)
@given(data=st.data())
def test_make_grid_decreases_strictly_from_t_to_0(spacing, data):
    total = data.draw(st.one_of(st.integers(1, 40), st.integers(1, 1500)))
    steps = data.draw(st.one_of(st.just(1), st.just(total), st.integers(1, total)))
    zero = data.draw(st.booleans()) and total > 1
    name = data.draw(st.sampled_from(list(SCHEDULES)))
    options = {"zero_terminal_snr": zero, "allow_nonzero_terminal_snr": True}
    schedule = diffusion(total, **options).make(name) if total > 1 else make_schedule("cosine", 1)
    grid = make_grid(spacing, schedule, steps)
    assert len(grid) == steps + 1
    assert (np.diff(grid) < 0).all()
    assert grid[-1] == 0
    assert grid[-2] >= 1
    # Leading counts from the cleanest level, and by its definition starts below T.
    assert grid[0] == (1 + (steps - 1) * (total // steps) if spacing == "leading" else total)
    if steps > 1 and spacing != "trailing":
        assert grid[-2] == pytest.approx(1)
    assert denoising_steps(grid) == steps
    if spacing in ("leading", "trailing", "linspace"):
        assert (grid == np.round(grid)).all()


def test_make_grid_known_grids():
    assert make_grid("leading", LINEAR, 4).tolist() == [751, 501, 251, 1, 0]
    assert make_grid("trailing", LINEAR, 4).tolist() == [1000, 750, 500, 250, 0]
    assert make_grid("linspace", LINEAR, 4).tolist() == [1000, 667, 334, 1, 0]
    assert make_grid("quadratic", LINEAR, 4).tolist() == pytest.approx([1000, 445, 112, 1, 0])


def ratios(schedule, grid):
    return np.array([schedule[position].sigma / schedule[position].alpha for position in grid[:-1]])


def test_log_snr_is_evenly_spaced_in_log_snr():
    logs = np.log(ratios(LINEAR, make_grid("log_snr", LINEAR, 12)))
    np.testing.assert_allclose(np.diff(logs), np.diff(logs)[0], rtol=1e-9)


def test_karras_agrees_with_diffusers():
    options = {"beta_start": 1e-4, "beta_end": 0.02, "use_karras_sigmas": True, "timestep_spacing": "linspace"}
    scheduler = diffusers.EulerDiscreteScheduler(1000, **options)
    scheduler.set_timesteps(12)
    grid = make_grid("karras", LINEAR, 12)
    np.testing.assert_allclose(ratios(LINEAR, grid), scheduler.sigmas[:-1].numpy(), rtol=1e-4)
    # They show the network the time between two levels, by linear interpolation in log sigma as here.
    np.testing.assert_allclose(grid[:-1] - 1, scheduler.timesteps.numpy(), atol=2e-2)


def test_make_grid_refuses_impossible_numbers_of_steps():
    for steps in (0, -1, 1001):
        with input_error("steps"):
            make_grid("trailing", LINEAR, steps)


@given(steps=st.integers(1, 60), churn=st.floats(0.1, 100), spacing=st.sampled_from(list(SPACINGS)))
def test_with_churn_raises_sigma_by_its_factor_before_each_step(steps, churn, spacing):
    plain = make_grid(spacing, LINEAR, steps)
    churned = with_churn(plain, LINEAR, churn)
    assert denoising_steps(churned) == steps
    raised = np.flatnonzero(np.diff(churned) > 0)
    factor = 1 + min(churn / steps, MAX_CHURN)
    top = ratios(LINEAR, [1000, 0])[0]
    low, high = ratios(LINEAR, np.append(churned[raised], 0)), ratios(LINEAR, np.append(churned[raised + 1], 0))
    np.testing.assert_allclose(high, np.minimum(low * factor, top), rtol=1e-9)
    # Every level of the plain grid is still visited, and all but T are left by re-noising.
    assert np.isin(plain, churned).all()
    assert len(raised) == (plain[:-1] < 1000).sum()


def test_with_churn_leaves_pure_noise_alone():
    schedule = diffusion(100, zero_terminal_snr=True).make("linear")
    churned = with_churn(make_grid("trailing", schedule, 4), schedule, 4.0)
    assert churned[:2].tolist() == [100, 75]
    assert np.isfinite(churned).all()
