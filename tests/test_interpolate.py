"""slerp and perturbed latents; interpolation between real images and variations of them."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import input_error
from hypothesis import given
from hypothesis import strategies as st
from oracles import LINEAR, T, gaussian_denoiser, noises, nonlinear_network, ode_end

from ddpm.diffusion.schedule import make_schedule
from ddpm.editing.interpolate import Encoded, interpolate, perturb_latent, slerp, variations
from ddpm.sampling.denoiser import network_denoiser
from ddpm.sampling.inversion import decode, round_trip
from ddpm.sampling.time_grid import make_grid

SEEDS = st.integers(0, 2**32)
UNIT = st.floats(0, 1)


def norms(x):
    return x.flatten(1).norm(dim=1)


def per_image(values):
    return values.reshape(-1, 1, 1, 1)


def turned(a, angle, seed):
    """A vector of a's norm at that angle to it, per image, and the one at a right angle."""
    other = noises(1, a.shape, seed)[0]
    across = other - per_image((a.flatten(1) * other.flatten(1)).sum(1) / norms(a) ** 2) * a
    across = across * per_image(norms(a) / norms(across))
    return math.cos(angle) * a + math.sin(angle) * across, across


def same_bits(x, y):
    """torch.equal, and a zero has its sign."""
    return torch.equal(x, y) and torch.equal(x.signbit(), y.signbit())


@given(seed=SEEDS, angle=st.floats(0.01, math.pi - 0.01), fraction=UNIT)
def test_slerp_rotates_by_its_fraction_of_the_angle(seed, angle, fraction):
    a = noises(1, seed=seed)[0]
    b, across = turned(a, angle, seed + 1)
    expected = math.cos(fraction * angle) * a + math.sin(fraction * angle) * across
    torch.testing.assert_close(slerp(a, b, fraction), expected, atol=1e-9, rtol=0)


@given(seed=SEEDS, angle=st.floats(0, math.pi - 0.01), fractions=st.lists(UNIT, min_size=1, max_size=5))
def test_slerp_keeps_the_norm_and_is_symmetric(seed, angle, fractions):
    f = torch.tensor(fractions, dtype=torch.float64)
    a = noises(1, (1, 3, 4, 4), seed)[0]
    b, _ = turned(a, angle, seed + 1)
    path = slerp(a, b, f)
    assert path.shape == (len(f), 3, 4, 4)
    torch.testing.assert_close(norms(path), norms(a).expand(len(f)), rtol=2e-7, atol=0)  # the straight line where nearly parallel
    torch.testing.assert_close(path, slerp(b, a, 1 - f), atol=1e-6, rtol=0)


@given(
    seed=SEEDS, count=st.integers(1, 17), dtype=st.sampled_from([torch.float32, torch.float64]),
    angle=st.sampled_from([0.0, 1e-4, 1.0, math.pi]),
)  # fmt: skip
def test_slerp_ends_are_exact(seed, count, dtype, angle):
    a = noises(1, (count, 1, 2, 3), seed)[0]
    a, b = a.to(dtype), (turned(a, angle, seed + 1)[0] * 1.7).to(dtype)
    a[..., 0], b[..., 1] = -0.0, -0.0
    assert same_bits(slerp(a, b, 0.0), a)
    assert same_bits(slerp(a, b, 1.0), b)
    ends = torch.arange(count) % 2
    assert same_bits(slerp(a, b, ends), torch.where(per_image(ends) == 0, a, b))


def test_slerp_rotates_each_image_by_its_own_angle():
    a, b = noises(2, (4, 2, 3, 3))
    f = torch.tensor([0.2, 0.4, 0.6, 0.8])
    each = [slerp(a[k : k + 1], b[k : k + 1], float(f[k])) for k in range(4)]
    torch.testing.assert_close(slerp(a, b, f.double()), torch.cat(each), atol=1e-7, rtol=0)


def test_slerp_is_lerp_for_parallel_opposite_and_zero_vectors():
    a = noises(1)[0]
    for b in (a, 2 * a, -a, -0.5 * a, torch.zeros_like(a)):
        torch.testing.assert_close(slerp(a, b, 0.25), torch.lerp(a, b, 0.25), atol=1e-12, rtol=0)
        torch.testing.assert_close(slerp(b, a, 0.25), torch.lerp(b, a, 0.25), atol=1e-12, rtol=0)
    assert torch.equal(slerp(0 * a, 0 * a, 0.5), 0 * a)


@pytest.mark.parametrize("angle", [1e-6, 0.9e-3, 1.1e-3, math.pi - 1.1e-3])
def test_slerp_is_accurate_in_single_precision_near_parallel(angle):
    a = noises(1, (2, 3, 16, 16))[0]
    b, across = turned(a, angle, 7)
    expected = math.cos(0.3 * angle) * a + math.sin(0.3 * angle) * across
    torch.testing.assert_close(slerp(a.float(), b.float(), 0.3).double(), expected, atol=1e-3, rtol=0)


def test_slerp_of_noise_keeps_its_variance():
    a, b = noises(2, (1, 3, 32, 32))
    assert slerp(a, b, 0.5).var() == pytest.approx(1, abs=0.05)
    assert torch.lerp(a, b, 0.5).var() == pytest.approx(0.5, abs=0.05)


@given(seed=SEEDS, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_perturb_latent_ends_are_exact(seed, dtype):
    latent, noise = (n.to(dtype) for n in noises(2, (5, 1, 2, 3), seed))
    latent[..., 0], noise[..., 1] = -0.0, -0.0
    assert same_bits(perturb_latent(latent, noise, 0.0), latent)
    assert same_bits(perturb_latent(latent, noise, 1.0), noise)
    amounts = torch.tensor([0.0, 1, 0, 1, 0])
    expected = torch.where(per_image(amounts) == 0, latent[:1], noise)
    assert same_bits(perturb_latent(latent[:1], noise, amounts), expected)


@given(seed=SEEDS, amount=UNIT)
def test_perturb_latent_rotates_by_its_fraction_of_a_right_angle(seed, amount):
    latent = noises(1, seed=seed)[0]
    noise, _ = turned(latent, math.pi / 2, seed + 1)
    torch.testing.assert_close(perturb_latent(latent, noise, amount), slerp(latent, noise, amount), atol=1e-9, rtol=0)


@given(amount=UNIT)
def test_perturb_latent_preserves_variance(amount):
    """Exactly: the squares of the two weights, measured on unit vectors, add up to 1."""
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    assert float(perturb_latent(one, zero, amount) ** 2 + perturb_latent(zero, one, amount) ** 2) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("amount", [-0.1, 1.1, math.nan, torch.tensor([0.5, 1.5])])
def test_perturb_latent_refuses_impossible_amounts(amount):
    with input_error("amount"):
        perturb_latent(*noises(2), amount)


GRID = make_grid("trailing", LINEAR, 20)


def weak_network(x, t, *labels):
    return 0.3 * nonlinear_network(x, t)


DENOISERS = {"gaussian": gaussian_denoiser(), "network": network_denoiser(weak_network, "v", None)}


def last(frames):
    *_, frame = frames
    return frame.x


def encode(denoiser, schedule, grid, x0):
    latent, decoded = round_trip(denoiser, schedule, grid, x0)
    return Encoded(x0, latent, x0 - decoded)


def pair(denoiser, dtype=torch.float64):
    images = (0.3 + 0.5 * noises(1, (2, 3, 4, 4))[0]).to(dtype)
    return [encode(denoiser, LINEAR, GRID, image[None]) for image in images]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DENOISERS)
def test_interpolate_ends_at_the_images_themselves(name, dtype):
    a, b = pair(DENOISERS[name], dtype)
    frames = list(interpolate(DENOISERS[name], LINEAR, GRID, a, b, torch.tensor([0.0, 1.0, 0.5, 0.0])))
    assert [frame.position for frame in frames] == GRID[1:].tolist()
    out = frames[-1].x
    assert out.dtype == dtype
    assert torch.equal(out[[0, 1, 3]], torch.cat([a.image, b.image, a.image]))
    assert min((out[2] - end.image).abs().max() for end in (a, b)) > 0.01


@pytest.mark.parametrize("name", DENOISERS)
def test_interpolate_adds_the_blended_residual_and_is_continuous_at_the_ends(name):
    denoiser, f = DENOISERS[name], torch.tensor([1e-7, 0.25, 0.5, 1 - 1e-7], dtype=torch.float64)
    a, b = pair(denoiser)
    out = last(interpolate(denoiser, LINEAR, GRID, a, b, f))
    w = per_image(f)
    between = last(decode(denoiser, LINEAR, GRID, slerp(a.latent, b.latent, f)))
    torch.testing.assert_close(out, between + (1 - w) * a.residual + w * b.residual)
    torch.testing.assert_close(out[:1], a.image, atol=1e-5, rtol=0)
    torch.testing.assert_close(out[-1:], b.image, atol=1e-5, rtol=0)


def test_interpolate_frames_include_the_residual():
    denoiser, f = DENOISERS["network"], torch.tensor([0.0, 0.5], dtype=torch.float64)
    a, b = pair(denoiser)
    residual = torch.cat([a.residual, (a.residual + b.residual) / 2])
    bare = decode(denoiser, LINEAR, GRID, slerp(a.latent, b.latent, f))
    for frame, plain in zip(interpolate(denoiser, LINEAR, GRID, a, b, f), bare, strict=True):
        torch.testing.assert_close(frame.x - plain.x, LINEAR[frame.position].alpha * residual)
        torch.testing.assert_close(frame.x0 - plain.x0, residual)


def test_interpolate_middle_of_gaussian_data_is_that_of_the_quantiles():
    """The flow is affine, so that latents of equal norm at a right angle meet at (z_a + z_b) / sqrt(2)."""
    schedule = make_schedule("cosine", T)
    grid, denoiser = make_grid("log_snr", schedule, T), gaussian_denoiser()
    z_a = noises(1, (1, 1, 2, 2))[0]
    z_b, _ = turned(z_a, math.pi / 2, 1)
    a, b = (encode(denoiser, schedule, grid, ode_end(z, schedule, T, 0)) for z in (z_a, z_b))
    middle = last(interpolate(denoiser, schedule, grid, a, b, torch.tensor([0.5])))
    torch.testing.assert_close(middle, 0.3 + 0.5 * (z_a + z_b) / math.sqrt(2), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", DENOISERS)
def test_variations_start_at_the_image_and_end_at_a_sample(name):
    denoiser = DENOISERS[name]
    encoded, _ = pair(denoiser)
    noise = noises(1, (4, 3, 4, 4), seed=3)[0]
    out = last(variations(denoiser, LINEAR, GRID, encoded, noise, torch.tensor([0.0, 1e-7, 0.5, 1.0], dtype=torch.float64)))
    assert torch.equal(out[:1], encoded.image)
    torch.testing.assert_close(out[1:2], encoded.image, atol=1e-5, rtol=0)
    half = last(decode(denoiser, LINEAR, GRID, perturb_latent(encoded.latent, noise[2:3], 0.5)))
    torch.testing.assert_close(out[2:3], half + math.sqrt(0.5) * encoded.residual)
    torch.testing.assert_close(out[3:], last(decode(denoiser, LINEAR, GRID, noise[3:])))


def test_variations_take_one_amount_for_a_batch_of_images_or_noise():
    denoiser = DENOISERS["gaussian"]
    images, noise = (0.3 + 0.5 * noises(1, (3, 1, 8, 8))[0]).float(), noises(1, (3, 1, 8, 8), seed=3)[0].float()
    encoded = encode(denoiser, LINEAR, GRID, images)
    assert torch.equal(last(variations(denoiser, LINEAR, GRID, encoded, noise, 0.0)), images)
    out = last(variations(denoiser, LINEAR, GRID, encoded, noise, 0.3))
    one = encode(denoiser, LINEAR, GRID, images[:1])
    around = last(variations(denoiser, LINEAR, GRID, one, noise, 0.3))
    assert around.shape == noise.shape
    torch.testing.assert_close(around[:1], out[:1])
    with input_error("amount"):
        variations(denoiser, LINEAR, GRID, encoded, noise, 2)


def test_variations_distance_grows_with_the_amount():
    denoiser = DENOISERS["gaussian"]
    encoded = encode(denoiser, LINEAR, GRID, 0.3 + 0.5 * noises(1, (1, 1, 8, 8))[0])
    noise = noises(1, (20, 1, 8, 8), seed=3)[0]
    distances = [
        float((last(variations(denoiser, LINEAR, GRID, encoded, noise, amount)) - encoded.image).square().mean())
        for amount in np.linspace(0, 1, 9).tolist()
    ]
    assert distances[0] == 0
    assert all(near < far for near, far in pairwise(distances))


def test_interpolate_and_variations_keep_no_gradients():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    denoiser = network_denoiser(lambda x, t, *labels: weight * weak_network(x, t), "v", None)
    a, b = pair(denoiser)
    assert not a.residual.requires_grad
    for frames in (
        interpolate(denoiser, LINEAR, GRID, a, b, torch.tensor([0.5])),
        variations(denoiser, LINEAR, GRID, a, b.image, 0.5),
    ):
        assert not last(frames).requires_grad
