"""Samplers against diffusers and against the exact law of their output on Gaussian data."""

import itertools
import math

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm.diffusion.parameterization import PREDICTIONS, from_x0, target
from ddpm.diffusion.schedule import make_schedule
from ddpm.diffusion.variance import large, small
from ddpm.files import InputError
from ddpm.networks.unet import UNet, UNetSettings
from ddpm.sampling.denoiser import clipped, network_denoiser, one_step
from ddpm.sampling.grid import SPACINGS, make_grid
from ddpm.sampling.samplers import bind, sample

T = 1000
LINEAR = make_schedule("linear", T)


def nonlinear_network(x, t, labels=None):
    """A fake network: nonlinear, since a linear one hides clipping errors, and different at every t."""
    return torch.tanh(1.3 * x) * (1 + t.reshape(-1, 1, 1, 1) / T) - 0.2 * x


def noises(count, shape=(2, 1, 4, 4), seed=0):
    return list(torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def run(rule, grid, x, noise=None, denoiser=None, schedule=LINEAR):
    supply = iter(noise or [])
    denoiser = denoiser or network_denoiser(nonlinear_network, "eps", None)
    *_, last = sample(denoiser, rule, schedule, grid, x, lambda: next(supply, torch.zeros_like(x)))
    return last.x


def peer(kind, **options):
    """A scheduler of diffusers with our alpha_bar in float64."""
    scheduler = kind(num_train_timesteps=T, **options)
    scheduler.alphas_cumprod = LINEAR[torch.arange(1, T + 1)].alpha ** 2
    scheduler.alphas = scheduler.alphas_cumprod / torch.cat([torch.ones(1), scheduler.alphas_cumprod[:-1]])
    scheduler.betas = 1 - scheduler.alphas
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def run_peer(scheduler, steps, x, noise, monkeypatch, **options):
    """The peer's loop, fed with our noise wherever it draws some."""
    scheduler.set_timesteps(steps)
    supply = iter(noise)
    for t in scheduler.timesteps:
        fresh = next(supply)
        module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
        monkeypatch.setattr(module, "randn_tensor", lambda *a, fresh=fresh, **k: fresh)
        output = nonlinear_network(x, torch.full((len(x),), float(t), dtype=torch.float64))
        x = scheduler.step(output, t, x, **options).prev_sample
    return x


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", T), ("leading", 50), ("linspace", 40)])
def test_ancestral_agrees_with_diffusers(variance, spacing, steps, monkeypatch):
    x, *noise = noises(steps + 1)
    ours = run(bind("ancestral", variance=variance), make_grid(spacing, T, steps), x, noise)
    scheduler = peer(diffusers.DDPMScheduler, variance_type=f"fixed_{variance}", clip_sample=False, timestep_spacing=spacing)
    theirs = run_peer(scheduler, steps, x, noise, monkeypatch)
    scale = theirs.abs().max()
    # The peer clamps a variance at 1e-20, which leaves 1e-10 of noise in the last step.
    torch.testing.assert_close(ours / scale, theirs / scale, atol=1e-9, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 50), ("leading", 7), ("trailing", 50), ("trailing", T)])
def test_ddim_agrees_with_diffusers(eta, spacing, steps, monkeypatch):
    x, *noise = noises(steps + 1)
    ours = run(bind("ddim", eta=eta), make_grid(spacing, T, steps), x, noise)
    options = {"set_alpha_to_one": True, "steps_offset": 0, "clip_sample": False, "timestep_spacing": spacing}
    theirs = run_peer(peer(diffusers.DDIMScheduler, **options), steps, x, noise, monkeypatch, eta=eta)
    scale = theirs.abs().max()
    torch.testing.assert_close(ours / scale, theirs / scale, atol=1e-12, rtol=0)


def test_ddim_with_clipping_agrees_with_diffusers(monkeypatch):
    x, *noise = noises(51)
    denoiser = clipped(network_denoiser(nonlinear_network, "eps", None))
    ours = run(bind("ddim", eta=0.0), make_grid("leading", T, 50), x, noise, denoiser)
    scheduler = peer(diffusers.DDIMScheduler, set_alpha_to_one=True, steps_offset=0, clip_sample=True)
    theirs = run_peer(scheduler, 50, x, noise, monkeypatch, use_clipped_model_output=True)
    torch.testing.assert_close(ours, theirs, atol=1e-13, rtol=0)


def test_ddim_with_eta_1_over_all_levels_is_ancestral_sampling():
    x, *noise = noises(T + 1)
    grid = make_grid("trailing", T, T)
    one = run(bind("ddim", eta=1.0), grid, x, noise)
    other = run(bind("ancestral", variance="small"), grid, x, noise)
    torch.testing.assert_close(one / other.abs().max(), other / other.abs().max(), atol=1e-12, rtol=0)


def gaussian_denoiser(mu, s):
    """The best denoiser of x0 ~ N(mu, s^2)."""

    def denoise(x, level):
        gain = level.alpha * s**2 / (level.alpha**2 * s**2 + level.sigma**2)
        return from_x0(mu + gain * (x - level.alpha * mu), x, level)

    return denoise


def output_law(rule, grid, mu=0.3, s=0.5):
    """Exact mean and standard deviation of the output: every step is affine, so two probes and unit noise tell it."""
    denoiser = gaussian_denoiser(mu, s)
    mean, variance = 0.0, 1.0
    for t, u in itertools.pairwise(grid):
        step = torch.tensor([int(t), int(u)])

        def probe(x, z, step=step):
            x = torch.full((1, 1, 1, 1), x, dtype=torch.float64)
            return float(run(rule, step, x, [torch.full_like(x, z)], denoiser))

        offset = probe(0.0, 0.0)
        slope, noise = probe(1.0, 0.0) - offset, probe(0.0, 1.0) - offset
        mean, variance = offset + slope * mean, slope**2 * variance + noise**2
    return mean, math.sqrt(variance)


@pytest.mark.parametrize(
    ("rule", "steps", "expected"),
    [
        (bind("ddim", eta=0.0), T, 0.49850),
        (bind("ddim", eta=1.0), T, 0.49611),
        (bind("ancestral", variance="small"), T, 0.49611),
        (bind("ancestral", variance="large"), T, 0.50075),
        (bind("ancestral", variance="large"), 10, 0.49390),
        (bind("ddim", eta=0.0), 10, 0.36995),
        (bind("ddim", eta=1.0), 10, 0.33348),
    ],
)
def test_output_law_on_gaussian_data(rule, steps, expected):
    mean, sd = output_law(rule, make_grid("trailing", T, steps))
    assert sd == pytest.approx(expected, abs=1e-5)
    # x_T starts at mean 0 instead of alpha_T * mu, which only many steps forget.
    assert mean == pytest.approx(0.3, abs=0.05)


def test_the_finished_image_gets_no_noise():
    x, fresh = noises(2)
    for variance in ("small", "large"):
        rule, last = bind("ancestral", variance=variance), np.array([1, 0])
        torch.testing.assert_close(run(rule, last, x, [fresh]), run(rule, last, x, [100 * fresh]), atol=0, rtol=0)


@pytest.mark.parametrize("steps", [1, 10, T])
def test_a_point_mass_is_recovered_exactly(steps):
    x, *noise = noises(steps + 1)

    def denoiser(x, level):
        return from_x0(torch.full_like(x, 0.7), x, level)

    for rule in (bind("ancestral", variance="small"), bind("ddim", eta=0.0)):
        out = run(rule, make_grid("trailing", T, steps), x, noise, denoiser)
        torch.testing.assert_close(out, torch.full_like(x, 0.7), atol=1e-12, rtol=0)


def test_a_mixture_of_two_points_keeps_its_weights():
    """p(x0 = 1) = 0.8, p(x0 = -1) = 0.2."""

    def denoiser(x, level):
        log_odds = math.log(4) + 2 * level.alpha * x / level.sigma**2
        return from_x0(torch.tanh(log_odds / 2), x, level)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, 1, 1, generator=generator, dtype=torch.float64)
    schedule, grid = make_schedule("cosine", 200), make_grid("trailing", 200, 200)
    rule = bind("ancestral", variance="small")
    *_, last = sample(denoiser, rule, schedule, grid, x, lambda: torch.randn(x.shape, generator=generator, dtype=x.dtype))
    torch.testing.assert_close(last.x.abs(), torch.ones_like(x), atol=1e-3, rtol=0)
    assert (last.x > 0).double().mean() == pytest.approx(0.8, abs=0.025)


@given(steps=st.integers(1, 999), t=st.integers(2, 1000))
def test_variances_are_ordered_and_vanish_at_the_clean_level(steps, t):
    t, s = LINEAR[t], LINEAR[max(1, t - steps)]
    if float(t.t) > float(s.t):
        assert 0 < small(t, s) < large(t, s)
    assert small(t, LINEAR[0]) == large(t, LINEAR[0]) == 0


@pytest.mark.parametrize("spacing", SPACINGS)
@given(data=st.data())
def test_grids_fall_strictly_from_near_t_to_0(spacing, data):
    total = data.draw(st.integers(1, 1500))
    steps = data.draw(st.integers(1, total))
    grid = make_grid(spacing, total, steps)
    assert len(grid) == steps + 1
    assert (np.diff(grid) < 0).all()
    assert grid[-1] == 0
    assert grid[0] <= total
    if spacing != "leading":
        assert grid[0] == total


def test_grids_are_the_known_ones():
    assert make_grid("leading", 1000, 4).tolist() == [751, 501, 251, 1, 0]
    assert make_grid("trailing", 1000, 4).tolist() == [1000, 750, 500, 250, 0]
    assert make_grid("linspace", 1000, 4).tolist() == [1000, 667, 334, 1, 0]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(InputError, match=r"allowed: 1 to 1000"):
        make_grid("trailing", 1000, steps)


@pytest.mark.parametrize(
    "rule", [bind("ancestral", variance="small"), bind("ancestral", variance="large"), bind("ddim", eta=0.5)]
)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_no_nan_at_the_ends_in_single_precision(rule, prediction):
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    denoiser = clipped(network_denoiser(nonlinear_network, prediction, None))
    for schedule in ("linear", "cosine"):
        frames = list(
            sample(denoiser, rule, make_schedule(schedule, T), make_grid("trailing", T, 20), x, lambda: torch.ones_like(x))
        )
        assert all(frame.x.isfinite().all() and frame.x.dtype == torch.float32 for frame in frames)
        assert frames[-1].index == 0
        torch.testing.assert_close(frames[-1].x, frames[-1].x0)


def test_clipping_bounds_x0_and_keeps_eps_consistent():
    x = 3 * torch.randn(4, 1, 3, 3, dtype=torch.float64)
    level = LINEAR[300]
    found = clipped(network_denoiser(nonlinear_network, "eps", None))(x, level)
    assert found.x0.abs().max() <= 1
    torch.testing.assert_close(level.alpha * found.x0 + level.sigma * found.eps, x)


def test_one_step_with_the_true_noise_gives_the_image_back():
    x0, eps = torch.rand(2, 3, 1, 4, 4, dtype=torch.float64) * 2 - 1
    level = LINEAR[250]

    def oracle(x, t, labels):
        return target("v", x0, eps, level)

    x_t = level.alpha * x0 + level.sigma * eps
    torch.testing.assert_close(one_step(network_denoiser(oracle, "v", None), x_t, level), x0)


def test_a_real_unet_runs_through_the_driver_and_yields_every_level():
    settings = UNetSettings(
        channels=8, channel_mults=[1, 2], blocks_per_level=1, attention_levels=[1], middle_attention=True, heads=2,
        dropout=0.0, conditioning="class",
    )  # fmt: skip
    network = UNet(settings, (8, 8, 1), 10).eval()
    denoiser = clipped(network_denoiser(network, "v", torch.arange(4)))
    frames = list(
        sample(denoiser, bind("ddim", eta=0.0), LINEAR, make_grid("trailing", T, 5), torch.randn(4, 1, 8, 8), lambda: None)
    )
    assert [frame.index for frame in frames] == [800, 600, 400, 200, 0]
    assert all(frame.x.shape == frame.x0.shape == (4, 1, 8, 8) for frame in frames)
