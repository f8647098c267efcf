"""DDIM inversion, inpainting with and without RePaint's jumps, and image to image."""

import math
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
from conftest import input_error
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import LINEAR, T, gaussian_denoiser, noises, nonlinear_network, ode_end, rule, run

from ddpm.diffusion.prediction import PREDICTIONS, Prediction
from ddpm.diffusion.schedule import make_schedule
from ddpm.editing.img2img import from_level, from_strength, image_to_image
from ddpm.editing.inpaint import inpainting, with_repaint_jumps
from ddpm.sampling.denoiser import network_denoiser
from ddpm.sampling.inversion import invert, round_trip
from ddpm.sampling.samplers import SAMPLERS, sample
from ddpm.sampling.time_grid import SPACINGS, denoising_steps, make_grid, with_churn


def error(steps, denoiser, schedule=LINEAR):
    x0 = 0.3 + 0.5 * noises(1)[0]
    _, decoded = round_trip(denoiser, schedule, make_grid("trailing", schedule, steps), x0)
    return float((decoded - x0).abs().mean())


def test_round_trip_error_falls_as_1_over_n():
    errors = [error(steps, gaussian_denoiser()) for steps in (100, 200, 400)]
    assert errors[0] < 0.2
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2, abs=0.35)


def test_invert_ends_where_the_probability_flow_does():
    schedule = make_schedule("cosine", 4000)
    x0 = 0.3 + 0.5 * noises(1)[0]
    *_, last = invert(gaussian_denoiser(), schedule, make_grid("log_snr", schedule, 4000), x0)
    torch.testing.assert_close(last.x, ode_end(x0, schedule, 0, 4000), atol=0.02, rtol=0)


def test_round_trip_is_exact_if_the_predicted_noise_is_zero():
    silent = network_denoiser(lambda x, *inputs: torch.zeros_like(x), "eps", None)
    assert error(10, silent) < 1e-13


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_invert_starts_at_the_clean_level_with_every_prediction(prediction):
    grid = make_grid("trailing", LINEAR, 50)
    denoiser = network_denoiser(lambda *a: 0.1 * nonlinear_network(*a), prediction, None)
    frames = list(invert(denoiser, LINEAR, grid, 0.5 * noises(1)[0]))
    assert [frame.position for frame in frames] == grid[::-1][1:].tolist()
    assert all(frame.x.isfinite().all() for frame in frames)


def test_invert_first_step_uses_the_noise_predicted_at_level_1():
    x0 = noises(1)[0]
    denoiser = network_denoiser(nonlinear_network, "v", None)
    frame = next(invert(denoiser, LINEAR, np.array([300.0, 0.0]), x0))
    torch.testing.assert_close(frame.x, LINEAR[300].alpha * x0 + LINEAR[300].sigma * denoiser(x0, LINEAR[1]).eps)


RULES = {name: {} for name in SAMPLERS} | {"ddpm": {"variance": "large"}, "ddim": {"eta": 0.5}}


def test_inpainting_noises_known_pixels_to_each_level():
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
def test_inpainting_refuses_a_mask_of_another_shape(shape):
    with input_error("mask"):
        inpainting(rule("euler"), torch.zeros(2, 1, 4, 4), torch.zeros(shape), lambda: None)


def test_with_repaint_jumps_known_grids():
    grid = np.array([9.0, 7, 5, 3, 1, 0])
    assert with_repaint_jumps(grid, 2, 2).tolist() == [9, 7, 5, 9, 7, 5, 3, 1, 5, 3, 1, 0]
    assert with_repaint_jumps(grid, 3, 3).tolist() == [9, 7, 5, 3, 1, 7, 5, 3, 1, 7, 5, 3, 1, 0]
    assert with_repaint_jumps(grid, 4, 2).tolist() == [9, 7, 5, 3, 1, 9, 7, 5, 3, 1, 0]
    assert with_repaint_jumps(grid, 100, 1).tolist() == grid.tolist()


@given(data=st.data())
def test_with_repaint_jumps_agrees_with_diffusers(data):
    """Its list holds every single step of a jump, and time steps, which are one below the levels."""
    steps = data.draw(st.integers(2, 60))
    jump, resamples = data.draw(st.integers(1, steps - 1)), data.draw(st.integers(1, 6))
    scheduler = diffusers.RePaintScheduler(num_train_timesteps=steps)
    scheduler.set_timesteps(steps, jump, resamples)
    theirs = [steps, *(int(t) for t in scheduler.timesteps), -1]
    ours = with_repaint_jumps(np.arange(steps, -1.0, -1), jump, resamples)
    visited = [ours[0]]
    for before, after in pairwise(ours):
        visited += np.arange(before + 1, after + 1).tolist() if after > before else [after]
    assert visited == [t + 1 for t in theirs[1:]]
    assert denoising_steps(ours) == steps + (resamples - 1) * jump * ((steps - 1) // jump)


@given(steps=st.integers(2, 30), jump=st.integers(1, 29), resamples=st.integers(1, 5), spacing=st.sampled_from(list(SPACINGS)))
def test_with_repaint_jumps_keeps_the_levels_and_ends_once(steps, jump, resamples, spacing):
    plain = make_grid(spacing, LINEAR, steps)
    grid = with_repaint_jumps(plain, min(jump, steps - 1), resamples)
    assert np.array_equal(np.unique(grid), np.unique(plain))
    assert (grid[0], grid[-1]) == (plain[0], 0)
    assert np.count_nonzero(grid == 0) == 1


@pytest.mark.parametrize(("jump", "resamples", "key"), [(2, 0, "resamples"), (0, 2, "jump"), (0, 1, "jump"), (5, 2, "jump")])
def test_with_repaint_jumps_refuses_impossible_values(jump, resamples, key):
    with input_error(key):
        with_repaint_jumps(make_grid("trailing", LINEAR, 5), jump, resamples)


@pytest.mark.parametrize("resamples", [1, 3])
@pytest.mark.parametrize("name", RULES)
def test_inpainting_returns_known_pixels_exactly_and_fills_the_others(name, resamples):
    image, mask = noises(1, seed=1)[0].clamp(-1, 1), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    x, *noise = noises(200)
    known = iter(noises(200, seed=2))
    grid = with_repaint_jumps(make_grid("trailing", LINEAR, 12), 3, resamples)
    step = inpainting(rule(name, **RULES[name]), image, mask, lambda: next(known))
    times = []

    def denoiser(x, level):
        times.append(level.t)
        return gaussian_denoiser()(x, level)

    out = run(step, grid, x, noise, denoiser)
    assert torch.equal(out[..., :2], image[..., :2])
    assert out.isfinite().all()
    assert (out[..., 2:] - 0.3).abs().max() < 2.5  # data of mean 0.3, standard deviation 0.5
    assert not torch.isclose(out[..., 2:], image[..., 2:]).any()
    # Heun evaluates twice in each step but the one to level 0.
    assert len(times) == (2 * denoising_steps(grid) - 1 if name == "heun" else denoising_steps(grid))


@pytest.mark.parametrize("name", RULES)
def test_inpainting_with_an_empty_mask_and_one_resample_is_plain_sampling(name):
    x, *noise = noises(60)
    plain, grid = rule(name, **RULES[name]), make_grid("trailing", LINEAR, 20)
    step = inpainting(plain, torch.ones_like(x), torch.zeros(1, 1, 4, 4), lambda: torch.randn_like(x))
    assert torch.equal(run(step, with_repaint_jumps(grid, 5, 1), x, noise), run(plain, grid, x, noise))


def correlated(covariance):
    """The optimal denoiser of images of two pixels ~ N(0, covariance)."""

    def denoise(x, level):
        noisy = level.alpha**2 * covariance + level.sigma**2 * torch.eye(2).double()
        gain = level.alpha * torch.linalg.solve(noisy, covariance)
        return Prediction((x.flatten(1) @ gain).reshape(x.shape), x, level)

    return denoise


def law_of_the_filled_pixel(step, grid, correlation, known):
    """Exact mean and standard deviation of the second pixel: it is affine in all noise, whose every number has an image of its
    own in the batch, while image 0 has none."""
    covariance = torch.tensor([[1, correlation], [correlation, 1]]).double()
    count = 1 + 2 * (1 + 2 * len(grid))
    image = torch.tensor([known, 0.0]).double().expand(count, 1, 1, 2)
    units = iter(torch.eye(count, dtype=torch.float64)[1:].reshape(-1, 2, count, 1, 1).permute(0, 2, 3, 4, 1))

    def noise():
        return next(units)

    filling = inpainting(step, image, torch.tensor([1.0, 0]).reshape(1, 1, 1, 2), noise)
    *_, last = sample(correlated(covariance), filling, LINEAR, grid, noise(), noise)
    assert torch.equal(last.x[..., 0], image[..., 0])
    out = last.x[..., 1].flatten()
    return float(out[0]), float((out[1:] - out[0]).square().sum().sqrt())


@pytest.mark.parametrize("name", RULES)
def test_inpainting_with_jumps_approaches_the_conditional_law(name):
    """Known pixel 1, correlation 0.9: the other one is N(0.9, 0.19)."""
    grid, step = make_grid("trailing", LINEAR, 20), rule(name, **RULES[name])
    off = []
    for resamples in (1, 3, 10):
        mean, std = law_of_the_filled_pixel(step, with_repaint_jumps(grid, 2, resamples), 0.9, 1.0)
        off.append((abs(mean - 0.9), abs(std - math.sqrt(0.19))))
    assert off[2][0] < off[1][0] < off[0][0]
    assert off[2][0] < 0.65 * off[0][0]
    assert off[2][1] < off[0][1]


def test_inpainting_with_jumps_keeps_the_law_of_an_independent_pixel():
    step = rule("ddim", eta=0.0)
    mean, std = law_of_the_filled_pixel(step, with_repaint_jumps(make_grid("trailing", LINEAR, 10), 2, 2), 0.0, 1.0)
    assert mean == pytest.approx(0, abs=1e-12)
    assert std == pytest.approx(1, abs=0.2)


def test_from_level_known_grids():
    grid = np.array([9.0, 7, 5, 3, 1, 0])
    assert from_level(grid, 9).tolist() == grid.tolist()
    assert from_level(grid, 5).tolist() == [5, 3, 1, 0]
    assert from_level(grid, 6).tolist() == [6, 5, 3, 1, 0]
    assert from_level(grid, 5.9).tolist() == [5.9, 3, 1, 0]
    assert from_level(grid, 1.4).tolist() == [1.4, 0]
    assert from_level(grid, 1).tolist() == [1, 0]
    assert from_level(np.array([9.0, 8.9, 5, 0]), 9).tolist() == [9, 8.9, 5, 0]
    assert from_level(grid, 0).tolist() == [0]
    assert from_level(grid, 12).tolist() == [12, *grid]
    assert from_level(np.array([9.0, 7, 9, 7, 5, 3, 5, 0]), 7.5).tolist() == [7.5, 5, 3, 5, 0]
    assert from_level(np.array([9.0, 5, 9, 5, 1, 5, 1, 0]), 5.5).tolist() == [5.5, 1, 5.5, 1, 0]
    assert from_level(np.array([9.0, 7, 5, 9, 7, 5, 3, 5, 0]), 8).tolist() == [8, 7, 5, 8, 7, 5, 3, 5, 0]


@given(
    steps=st.integers(1, 40), position=st.floats(1, 1000), spacing=st.sampled_from(list(SPACINGS)),
    jump=st.integers(1, 4), churn=st.sampled_from([0.0, 5.0]),
)  # fmt: skip
def test_from_level_starts_at_its_level_and_ends_at_0(steps, position, spacing, jump, churn):
    plain = make_grid(spacing, LINEAR, steps)
    part = from_level(plain, position)
    assert (np.diff(part) < 0).all()
    assert np.isin(part[1:], plain).all()
    jumping = with_repaint_jumps(plain, jump, 2) if jump < steps else plain
    for grid in (plain, with_churn(jumping, LINEAR, churn) if churn else jumping):
        part = from_level(grid, position)
        assert (part[0], part[-1], part.max()) == (position, 0, position)
        assert np.count_nonzero(part == 0) == 1
    assert (np.diff(from_level(jumping, position)) != 0).all()
    assert all(np.array_equal(from_level(plain, plain[k]), plain[k:]) for k in range(steps))


@given(steps=st.integers(1, 100), strength=st.floats(0.001, 1))
@example(steps=96, strength=0.5145937216953377)
def test_from_strength_keeps_that_share_of_the_steps(steps, strength):
    grid = from_strength(make_grid("trailing", LINEAR, steps), LINEAR, strength)
    assert grid[0] == max(1, round(strength * T))
    # The level is rounded by up to 0.5, and half of the step that follows, beside its lower end, by 0.25 + 0.75.
    assert abs(denoising_steps(grid) - strength * steps) <= max(0.5 + 1.5 * steps / T, 1 - strength * steps)


def test_from_strength_1_starts_at_t_on_every_grid():
    assert from_strength(make_grid("leading", LINEAR, 4), LINEAR, 1.0).tolist() == [1000, 751, 501, 251, 1, 0]
    schedule = make_schedule("cosine", T, zero_terminal_snr=True)
    for spacing in SPACINGS:
        grid = make_grid(spacing, schedule, 30)
        assert from_strength(grid, schedule, 1.0).tolist() == ([] if grid[0] == T else [T]) + grid.tolist()


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.58, 1.0])
def test_from_strength_agrees_with_diffusers(strength):
    steps = 50
    scheduler = diffusers.DDIMScheduler(T, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    # StableDiffusionImg2ImgPipeline.get_timesteps, for a whole strength * steps.
    theirs = scheduler.timesteps[steps - round(strength * steps) :]
    assert from_strength(make_grid("trailing", LINEAR, steps), LINEAR, strength)[:-1].tolist() == (theirs + 1).tolist()


@pytest.mark.parametrize("strength", [-0.1, 1.01, math.nan])
def test_from_strength_refuses_impossible_strengths(strength):
    with input_error("strength"):
        from_strength(make_grid("trailing", LINEAR, 10), LINEAR, strength)


def edited(name, grid, x0, strength, noise, **options):
    supply, part = iter(noise), from_strength(grid, LINEAR, strength)
    *_, last = image_to_image(gaussian_denoiser(), rule(name, **options), LINEAR, part, x0, lambda: next(supply))
    return last.x


def law_of_an_edit(name, grid, x0, strength, **options):
    """Exact mean and standard deviation of the edited pixel x0, affine in every noise, as in `oracles.output_law`."""
    count = len(grid) + 3
    unit = torch.eye(count, dtype=torch.float64).reshape(count, count, 1, 1, 1)
    out = edited(name, grid, torch.full_like(unit[0], x0), strength, list(unit[1:]), **options).flatten()
    return float(out[0]), math.sqrt(float((out[1:] - out[0]).square().sum()))


def test_image_to_image_strength_0_is_the_image_without_an_evaluation():
    x0 = noises(1)[0]
    grid = from_strength(make_grid("trailing", LINEAR, 10), LINEAR, 0.0)
    (frame,) = image_to_image(None, rule("euler"), LINEAR, grid, x0, None)
    assert frame.position == 0
    assert torch.equal(frame.x, x0)
    assert torch.equal(frame.x0, x0)


@pytest.mark.parametrize("name", RULES)
def test_image_to_image_strength_1_samples_from_the_image_noised_to_t(name):
    x0, *noise = noises(60)
    grid = make_grid("trailing", LINEAR, 10)
    start = LINEAR[T].alpha * x0 + LINEAR[T].sigma * noise[0]
    ours = edited(name, grid, x0, 1.0, noise, **RULES[name])
    torch.testing.assert_close(ours, run(rule(name, **RULES[name]), grid, start, noise[1:], gaussian_denoiser()))


def test_image_to_image_frames_decrease_from_the_strength():
    x0 = noises(1)[0]
    grid = from_strength(make_grid("trailing", LINEAR, 10), LINEAR, 0.4)
    frames = image_to_image(gaussian_denoiser(), rule("euler"), LINEAR, grid, x0, lambda: torch.ones_like(x0))
    assert [frame.position for frame in frames] == [300, 200, 100, 0]


@pytest.mark.parametrize("strength", [0.1, 0.4, 0.75, 1.0])
@pytest.mark.parametrize(("name", "steps", "tolerance"), [("ddim", 500, 0.02), ("heun", 60, 4e-3), ("dpmpp_2m", 60, 4e-3)])
def test_image_to_image_has_the_law_of_the_probability_flow(name, steps, tolerance, strength):
    """x0 = 1 noised to level t is N(alpha, sigma^2), which the flow of data N(0.3, 0.5^2) takes to 0 by an affine map."""
    grid, level = make_grid("log_snr", LINEAR, steps), LINEAR[round(strength * T)]
    mean, std = law_of_an_edit(name, grid, 1.0, strength, **({"eta": 0.0} if name == "ddim" else {}))
    starts = torch.tensor([level.alpha, level.alpha + level.sigma]).double()
    low, high = ode_end(starts, LINEAR, strength * T, 0).tolist()
    assert mean == pytest.approx(low, abs=tolerance)
    assert std == pytest.approx(high - low, abs=tolerance)


@pytest.mark.parametrize(("strength", "levels"), [(0.45, [450, 400, 300, 200, 100, 0]), (0.1504, [150, 100, 0]), (1e-5, [1, 0])])
def test_image_to_image_has_the_law_of_its_affine_steps(strength, levels):
    """Each DDIM step of the Gaussian denoiser, written out in numbers."""
    mu, s, mean, std = 0.3, 0.5, LINEAR[levels[0]].alpha * 1.0, LINEAR[levels[0]].sigma
    for t, down in pairwise(levels):
        a, b = LINEAR[t], LINEAR[down]
        gain = a.alpha * s**2 / (a.alpha**2 * s**2 + a.sigma**2)
        ratio = b.sigma / a.sigma
        slope = ratio + (b.alpha - ratio * a.alpha) * gain
        mean, std = slope * mean + (b.alpha - ratio * a.alpha) * mu * (1 - gain * a.alpha), slope * std
    ours = law_of_an_edit("ddim", make_grid("trailing", LINEAR, 10), 1.0, strength, eta=0.0)
    assert ours == pytest.approx((mean, std), rel=1e-12)


def test_image_to_image_distance_grows_with_the_strength():
    grid = make_grid("trailing", LINEAR, 50)
    for name, options in (("ddim", {"eta": 0.0}), ("ddpm", {})):
        distances = []
        for strength in np.linspace(0, 1, 11).tolist():
            # Over images x0 ~ N(0.3, 0.5^2), by the three points of Gauss-Hermite quadrature, exact for squares.
            laws = [law_of_an_edit(name, grid, x0, strength, **options) for x0 in (0.3 - 0.5 * 3**0.5, 0.3, 0.3 + 0.5 * 3**0.5)]
            squares = [(mean - 0.3 - 0.5 * k * 3**0.5) ** 2 + std**2 for k, (mean, std) in zip((-1, 0, 1), laws, strict=True)]
            distances.append(squares[0] / 6 + squares[1] * 2 / 3 + squares[2] / 6)
        assert distances[0] == 0
        assert all(near < far for near, far in pairwise(distances))
        # At the end the two are independent draws of the data, but for what little x_T keeps of the image.
        assert distances[-1] == pytest.approx(2 * 0.5**2, rel=0.15)


def test_image_to_image_with_inpainting_keeps_known_pixels():
    image, mask = noises(1, seed=1)[0], torch.zeros(1, 1, 4, 4)
    mask[..., 0, :] = 1
    known, *noise = noises(60)
    step, supply = inpainting(rule("ddim", eta=0.5), image, mask, lambda: known), iter(noise)
    part = from_strength(with_repaint_jumps(make_grid("trailing", LINEAR, 10), 2, 2), LINEAR, 0.55)
    *_, last = image_to_image(gaussian_denoiser(), step, LINEAR, part, image, lambda: next(supply))
    assert torch.equal(last.x[..., 0, :], image[..., 0, :])
    assert not torch.isclose(last.x[..., 1:, :], image[..., 1:, :]).any()
