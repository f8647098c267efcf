"""Grids: which levels a sampler visits, for every schedule, length and number of steps."""

import math

import diffusers
import numpy as np
import pytest
from conftest import diffusion
from hypothesis import given
from hypothesis import strategies as st

from ddpm.core.files import InputError
from ddpm.diffusion.schedule import SCHEDULES, make_schedule
from ddpm.sampling.time_grid import MAX_CHURN, SPACINGS, denoising_steps, make_grid, with_churn, with_corrector

LINEAR = make_schedule("linear", 1000)


@pytest.mark.parametrize("spacing", SPACINGS)
@given(data=st.data())
def test_grids_fall_strictly_from_t_to_0(spacing, data):
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


def test_grids_are_the_known_ones():
    assert make_grid("leading", LINEAR, 4).tolist() == [751, 501, 251, 1, 0]
    assert make_grid("trailing", LINEAR, 4).tolist() == [1000, 750, 500, 250, 0]
    assert make_grid("linspace", LINEAR, 4).tolist() == [1000, 667, 334, 1, 0]
    assert make_grid("quadratic", LINEAR, 4).tolist() == pytest.approx([1000, 445, 112, 1, 0])


def ratios(schedule, grid):
    return np.array([schedule[position].sigma / schedule[position].alpha for position in grid[:-1]])


def test_log_snr_is_even_in_its_logarithm():
    logs = np.log(ratios(LINEAR, make_grid("log_snr", LINEAR, 12)))
    np.testing.assert_allclose(np.diff(logs), np.diff(logs)[0], rtol=1e-9)


def test_karras_has_the_noise_levels_of_diffusers():
    scheduler = diffusers.EulerDiscreteScheduler(
        1000, beta_start=1e-4, beta_end=0.02, use_karras_sigmas=True, timestep_spacing="linspace"
    )
    scheduler.set_timesteps(12)
    grid = make_grid("karras", LINEAR, 12)
    np.testing.assert_allclose(ratios(LINEAR, grid), scheduler.sigmas[:-1].numpy(), rtol=1e-4)
    # They show the network the time between two levels, by linear interpolation in log sigma as here.
    np.testing.assert_allclose(grid[:-1] - 1, scheduler.timesteps.numpy(), atol=2e-2)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(InputError, match=r"allowed: 1 to 1000"):
        make_grid("trailing", LINEAR, steps)


@given(steps=st.integers(1, 60), churn=st.floats(0.1, 100), spacing=st.sampled_from(list(SPACINGS)))
def test_churn_climbs_by_its_factor_before_each_step(steps, churn, spacing):
    plain = make_grid(spacing, LINEAR, steps)
    rough = with_churn(plain, LINEAR, churn)
    assert denoising_steps(rough) == steps
    climbs = np.flatnonzero(np.diff(rough) > 0)
    factor = 1 + min(churn / steps, MAX_CHURN)
    top = ratios(LINEAR, [1000, 0])[0]
    low, high = ratios(LINEAR, np.append(rough[climbs], 0)), ratios(LINEAR, np.append(rough[climbs + 1], 0))
    np.testing.assert_allclose(high, np.minimum(low * factor, top), rtol=1e-9)
    # Every level of the plain grid is still visited, and all but T are left by a climb.
    assert np.isin(plain, rough).all()
    assert len(climbs) == (plain[:-1] < 1000).sum()


def test_churn_leaves_pure_noise_alone():
    schedule = diffusion(100, zero_terminal_snr=True).make("linear")
    rough = with_churn(make_grid("trailing", schedule, 4), schedule, 4.0)
    assert rough[0] == 100
    assert rough[1] == 75
    assert np.isfinite(rough).all()


def test_a_correction_stays_once_at_each_level_but_the_last():
    assert with_corrector(np.array([9.0, 5, 1, 0])).tolist() == [9, 5, 5, 1, 1, 0]
    assert with_corrector(np.array([9.0, 5, 6, 1, 2, 0])).tolist() == [9, 5, 5, 6, 1, 1, 2, 0]
    assert with_corrector(np.array([9.0, 0])).tolist() == [9, 0]
    grid = make_grid("karras", LINEAR, 18)
    assert denoising_steps(with_corrector(grid)) == 35
    assert denoising_steps(with_corrector(with_churn(grid, LINEAR, math.sqrt(2)))) == 35
