"""Inversion, inpainting with and without jumps, and image to image."""

import math
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import LINEAR, T, gaussian_denoiser, noises, nonlinear_network, ode_end, rule, run

from ddpm.core.files import InputError
from ddpm.diffusion.prediction import PREDICTIONS, Prediction
from ddpm.diffusion.schedule import make_schedule
from ddpm.editing.img2img import from_level, from_strength, image_to_image
from ddpm.editing.inpaint import inpainting, with_repaint_jumps
from ddpm.sampling.denoiser import network_denoiser
from ddpm.sampling.inversion import invert, round_trip
from ddpm.sampling.samplers import SAMPLERS, sample
from ddpm.sampling.time_grid import SPACINGS, denoising_steps, make_grid, with_churn, with_corrector


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
    silent = network_denoiser(lambda x, *told: torch.zeros_like(x), "eps", None)
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


# --- jumps


def test_jumps_are_the_known_ones():
    grid = np.array([9.0, 7, 5, 3, 1, 0])
    assert with_repaint_jumps(grid, 2, 2).tolist() == [9, 7, 5, 9, 7, 5, 3, 1, 5, 3, 1, 0]
    assert with_repaint_jumps(grid, 3, 3).tolist() == [9, 7, 5, 3, 1, 7, 5, 3, 1, 7, 5, 3, 1, 0]
    assert with_repaint_jumps(grid, 4, 2).tolist() == [9, 7, 5, 3, 1, 9, 7, 5, 3, 1, 0]
    assert with_repaint_jumps(grid, 100, 1).tolist() == grid.tolist()


@given(data=st.data())
def test_jumps_are_those_of_diffusers(data):
    """Its list holds every single step of a climb, and time steps, which are one below the levels."""
    steps = data.draw(st.integers(2, 60))
    jump, resamples = data.draw(st.integers(1, steps - 1)), data.draw(st.integers(1, 6))
    scheduler = diffusers.RePaintScheduler(num_train_timesteps=steps)
    scheduler.set_timesteps(steps, jump, resamples)
    theirs = [steps, *(int(t) for t in scheduler.timesteps), -1]
    ours = with_repaint_jumps(np.arange(steps, -1.0, -1), jump, resamples)
    walked = [ours[0]]
    for before, after in pairwise(ours):
        walked += np.arange(before + 1, after + 1).tolist() if after > before else [after]
    assert walked == [t + 1 for t in theirs[1:]]
    assert denoising_steps(ours) == steps + (resamples - 1) * jump * ((steps - 1) // jump)


@given(steps=st.integers(2, 30), jump=st.integers(1, 29), resamples=st.integers(1, 5), spacing=st.sampled_from(list(SPACINGS)))
def test_jumps_keep_the_levels_and_end_once(steps, jump, resamples, spacing):
    plain = make_grid(spacing, LINEAR, steps)
    grid = with_repaint_jumps(plain, min(jump, steps - 1), resamples)
    assert np.array_equal(np.unique(grid), np.unique(plain))
    assert (grid[0], grid[-1]) == (plain[0], 0)
    assert np.count_nonzero(grid == 0) == 1


@pytest.mark.parametrize(
    ("jump", "resamples", "message"),
    [
        (2, 0, r"resamples: 0 is not possible; give 1"),
        (0, 2, r"jump: 0 steps are no climb on a grid of 5 steps"),
        (0, 1, r"jump: 0 steps"),
        (5, 2, r"jump: 5 steps are no climb on a grid of 5 steps; give at least 1, and fewer than the grid has"),
    ],
)
def test_impossible_jumps_are_refused(jump, resamples, message):
    with pytest.raises(InputError, match=message):
        with_repaint_jumps(make_grid("trailing", LINEAR, 5), jump, resamples)


RULES = {"ancestral": {"variance": "large"}, "ddim": {"eta": 0.5}, **{name: {} for name in SAMPLERS if name != "ddim"}}


def visited(name, grid):
    return with_corrector(grid) if name in SAMPLERS and SAMPLERS[name].twice else grid


@pytest.mark.parametrize("name", RULES)
def test_every_sampler_inpaints_with_jumps(name):
    image, mask = noises(1, seed=1)[0].clamp(-1, 1), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    x, *noise = noises(200)
    known = iter(noises(200, seed=2))
    grid = visited(name, with_repaint_jumps(make_grid("trailing", LINEAR, 12), 3, 3))
    step = inpainting(rule(name, **RULES[name]), image, mask, lambda: next(known))
    asked = []

    def denoiser(x, level):
        asked.append(level.t)
        return gaussian_denoiser()(x, level)

    out = run(step, grid, x, noise, denoiser)
    assert torch.equal(out[..., :2], image[..., :2])
    assert out.isfinite().all()
    assert (out[..., 2:] - 0.3).abs().max() < 2.5  # data of mean 0.3, standard deviation 0.5
    assert len(asked) == denoising_steps(grid)


@pytest.mark.parametrize("name", RULES)
def test_an_empty_mask_and_one_resample_are_plain_sampling(name):
    x, *noise = noises(60)
    plain, grid = rule(name, **RULES[name]), make_grid("trailing", LINEAR, 20)
    step = inpainting(plain, torch.ones_like(x), torch.zeros(1, 1, 4, 4), lambda: torch.randn_like(x))
    assert torch.equal(
        run(step, visited(name, with_repaint_jumps(grid, 5, 1)), x, noise), run(plain, visited(name, grid), x, noise)
    )


def correlated(covariance):
    """The best denoiser of images of two pixels ~ N(0, covariance)."""

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
def test_jumps_bring_the_filled_pixel_to_its_conditional_law(name):
    """Known pixel 1, correlation 0.9: the other one is N(0.9, 0.19)."""
    grid, step = make_grid("trailing", LINEAR, 20), rule(name, **RULES[name])
    off = []
    for resamples in (1, 3, 10):
        mean, std = law_of_the_filled_pixel(step, visited(name, with_repaint_jumps(grid, 2, resamples)), 0.9, 1.0)
        off.append((abs(mean - 0.9), abs(std - math.sqrt(0.19))))
    assert off[2][0] < off[1][0] < off[0][0]
    assert off[2][0] < 0.65 * off[0][0]
    assert off[2][1] < off[0][1]


def test_without_correlation_there_is_nothing_for_jumps_to_do():
    step = rule("ddim", eta=0.0)
    mean, std = law_of_the_filled_pixel(step, with_repaint_jumps(make_grid("trailing", LINEAR, 10), 2, 2), 0.0, 1.0)
    assert mean == pytest.approx(0, abs=1e-12)
    assert std == pytest.approx(1, abs=0.2)


# --- part of a grid


def test_parts_of_grids_are_the_known_ones():
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
    assert from_level(np.array([9.0, 5, 5, 1, 1, 0]), 7).tolist() == [7, 5, 5, 1, 1, 0]
    assert from_level(np.array([9.0, 7, 9, 7, 5, 3, 5, 0]), 7.5).tolist() == [7.5, 5, 3, 5, 0]
    assert from_level(np.array([9.0, 5, 9, 5, 1, 5, 1, 0]), 5.5).tolist() == [5.5, 1, 5.5, 1, 0]
    assert from_level(np.array([9.0, 7, 5, 9, 7, 5, 3, 5, 0]), 8).tolist() == [8, 7, 5, 8, 7, 5, 3, 5, 0]


@given(
    steps=st.integers(1, 40), position=st.floats(1, 1000), spacing=st.sampled_from(list(SPACINGS)),
    jump=st.integers(1, 4), churn=st.sampled_from([0.0, 5.0]),
)  # fmt: skip
def test_a_part_of_a_grid_starts_at_its_level_and_ends_at_0(steps, position, spacing, jump, churn):
    plain = make_grid(spacing, LINEAR, steps)
    part = from_level(plain, position)
    assert (np.diff(part) < 0).all()
    assert np.isin(part[1:], plain).all()
    climbing = with_repaint_jumps(plain, jump, 2) if jump < steps else plain
    for grid in (plain, with_churn(climbing, LINEAR, churn) if churn else climbing, with_corrector(climbing)):
        part = from_level(grid, position)
        assert (part[0], part[-1], part.max()) == (position, 0, position)
        assert np.count_nonzero(part == 0) == 1
    # Only a correction stays at a level.
    assert (np.diff(from_level(climbing, position)) != 0).all()
    if position <= plain[0]:
        assert np.array_equal(from_level(with_corrector(plain), position), with_corrector(from_level(plain, position)))
    assert all(np.array_equal(from_level(plain, plain[k]), plain[k:]) for k in range(steps))


@given(steps=st.integers(1, 100), strength=st.floats(0.001, 1))
def test_strength_is_the_share_of_the_steps(steps, strength):
    grid = from_strength(make_grid("trailing", LINEAR, steps), LINEAR, strength)
    assert grid[0] == max(1, round(strength * T))
    assert abs(denoising_steps(grid) - strength * steps) <= max(0.5 + steps / T, 1 - strength * steps)


def test_full_strength_starts_at_t_on_every_grid():
    assert from_strength(make_grid("leading", LINEAR, 4), LINEAR, 1.0).tolist() == [1000, 751, 501, 251, 1, 0]
    schedule = make_schedule("cosine", T, zero_terminal_snr=True)
    for spacing in SPACINGS:
        grid = make_grid(spacing, schedule, 30)
        assert from_strength(grid, schedule, 1.0).tolist() == ([] if grid[0] == T else [T]) + grid.tolist()


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.58, 1.0])
def test_strength_is_that_of_diffusers(strength):
    steps = 50
    scheduler = diffusers.DDIMScheduler(T, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    # StableDiffusionImg2ImgPipeline.get_timesteps, for a whole strength * steps.
    theirs = scheduler.timesteps[steps - round(strength * steps) :]
    assert from_strength(make_grid("trailing", LINEAR, steps), LINEAR, strength)[:-1].tolist() == (theirs + 1).tolist()


@pytest.mark.parametrize("strength", [-0.1, 1.01, math.nan])
def test_impossible_strengths_are_refused(strength):
    grid, x0 = make_grid("trailing", LINEAR, 10), torch.zeros(1, 1, 2, 2)
    with pytest.raises(InputError, match=r"strength: .* is not possible; give a number from 0.* to 1"):
        image_to_image(gaussian_denoiser(), rule("euler"), LINEAR, grid, x0, strength, lambda: x0)


# --- image to image


def edited(name, grid, x0, strength, noise, denoiser=None, **options):
    supply = iter(noise)
    *_, last = image_to_image(
        denoiser or gaussian_denoiser(), rule(name, **options), LINEAR, grid, x0, strength, lambda: next(supply)
    )
    return last.x


def law_of_an_edit(name, grid, x0, strength, **options):
    """Exact mean and standard deviation of what becomes of a pixel x0, affine in every noise, as in `oracles.output_law`."""
    count = len(grid) + 3
    unit = torch.eye(count, dtype=torch.float64).reshape(count, count, 1, 1, 1)
    out = edited(name, grid, torch.full_like(unit[0], x0), strength, list(unit[1:]), **options).flatten()
    return float(out[0]), math.sqrt(float((out[1:] - out[0]).square().sum()))


def test_strength_0_is_the_image_without_an_evaluation():
    x0 = noises(1)[0]
    frames = list(image_to_image(None, rule("euler"), LINEAR, make_grid("trailing", LINEAR, 10), x0, 0.0, None))
    assert [frame.position for frame in frames] == [0]
    assert torch.equal(frames[0].x, x0)
    assert torch.equal(frames[0].x0, x0)


@pytest.mark.parametrize("name", RULES)
def test_strength_1_is_sampling_from_the_image_noised_to_t(name):
    x0, *noise = noises(60)
    grid = visited(name, make_grid("trailing", LINEAR, 10))
    start = LINEAR[T].alpha * x0 + LINEAR[T].sigma * noise[0]
    ours = edited(name, grid, x0, 1.0, noise, **RULES[name])
    torch.testing.assert_close(ours, run(rule(name, **RULES[name]), grid, start, noise[1:], gaussian_denoiser()))


def test_frames_fall_from_the_strength():
    x0 = noises(1)[0]
    frames = image_to_image(
        gaussian_denoiser(), rule("euler"), LINEAR, make_grid("trailing", LINEAR, 10), x0, 0.4, lambda: torch.ones_like(x0)
    )
    assert [frame.position for frame in frames] == [300, 200, 100, 0]


@pytest.mark.parametrize("strength", [0.1, 0.4, 0.75, 1.0])
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m"])
def test_the_law_of_an_edit_is_that_of_the_probability_flow(name, strength):
    """x0 = 1 noised to level t is N(alpha, sigma^2), which the flow of data N(0.3, 0.5^2) takes to 0 by an affine map."""
    steps = {"ddim": 500}.get(name, 60)
    grid = visited(name, make_grid("log_snr", LINEAR, steps))
    mean, std = law_of_an_edit(name, grid, 1.0, strength, **({"eta": 0.0} if name == "ddim" else {}))
    level = LINEAR[round(strength * T)]
    low, high = (
        float(ode_end(torch.tensor(x).double(), LINEAR, strength * T, 0)) for x in (level.alpha, level.alpha + level.sigma)
    )
    tolerance = 0.02 if name == "ddim" else 4e-3
    assert mean == pytest.approx(low, abs=tolerance)
    assert std == pytest.approx(high - low, abs=tolerance)


@pytest.mark.parametrize(("strength", "levels"), [(0.45, [450, 400, 300, 200, 100, 0]), (0.1504, [150, 100, 0]), (1e-5, [1, 0])])
def test_the_law_of_an_edit_is_the_product_of_its_affine_steps(strength, levels):
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


def test_the_distance_to_the_image_grows_with_the_strength():
    grid = make_grid("trailing", LINEAR, 50)
    for name, options in (("ddim", {"eta": 0.0}), ("ancestral", {"variance": "small"})):
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


def test_an_edit_inpaints_too():
    image, mask = noises(1, seed=1)[0], torch.zeros(1, 1, 4, 4)
    mask[..., 0, :] = 1
    known, *noise = noises(60)
    step = inpainting(rule("ddim", eta=0.5), image, mask, lambda: known)
    supply = iter(noise)
    grid = with_repaint_jumps(make_grid("trailing", LINEAR, 10), 2, 2)
    *_, last = image_to_image(gaussian_denoiser(), step, LINEAR, grid, image, 0.55, lambda: next(supply))
    assert torch.equal(last.x[..., 0, :], image[..., 0, :])
    assert not torch.isclose(last.x[..., 1:, :], image[..., 1:, :]).any()
