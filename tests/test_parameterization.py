"""Predictions, their inversion by one linear solve, and loss weights, over every level."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm.diffusion.loss import LOSS_WEIGHTS, diffusion_loss, draw_levels, output_weight
from ddpm.diffusion.parameterization import PREDICTIONS, from_x0, solve, target
from ddpm.diffusion.schedule import SCHEDULES, add_noise, make_schedule

T = 1000


@pytest.mark.parametrize("prediction", PREDICTIONS)
@given(index=st.integers(1, T), seed=st.integers(0, 2**32 - 1), schedule=st.sampled_from(list(SCHEDULES)))
def test_round_trip(prediction, index, seed, schedule):
    x0, eps = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    level = make_schedule(schedule, T)[index]
    x_t = add_noise(x0, eps, level)
    found = solve(prediction, target(prediction, x0, eps, level), x_t, level)
    # Where a division by a tiny alpha or sigma is due, that much precision is lost.
    scale = 1 / min(float(level.alpha), float(level.sigma))
    torch.testing.assert_close(found.x0, x0, atol=1e-13 * scale, rtol=0)
    torch.testing.assert_close(found.eps, eps, atol=1e-13 * scale, rtol=0)
    torch.testing.assert_close(level.alpha * found.x0 + level.sigma * found.eps, x_t, atol=1e-12, rtol=0)


def test_targets_are_the_textbook_ones():
    x0, eps = torch.randn(2, 2, 1, 3, 3, dtype=torch.float64)
    level = make_schedule("linear", T)[400]
    torch.testing.assert_close(target("eps", x0, eps, level), eps)
    torch.testing.assert_close(target("x0", x0, eps, level), x0)
    torch.testing.assert_close(target("v", x0, eps, level), level.alpha * eps - level.sigma * x0)


def test_from_x0_explains_x_t():
    x_t, x0 = torch.randn(2, 5, 1, 3, 3, dtype=torch.float64)
    level = make_schedule("linear", T)[torch.tensor([1, 10, 100, 500, 1000])]
    found = from_x0(x0, x_t, level)
    torch.testing.assert_close(add_noise(found.x0, found.eps, level), x_t)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weights_on_the_output_have_their_known_forms(schedule):
    level = make_schedule(schedule, T)[torch.arange(1, T + 1)]
    snr, one = level.snr, torch.ones(T, dtype=torch.float64)
    known = {
        ("simple", "eps"): one,
        ("x0", "x0"): one,
        ("v", "v"): one,
        ("min_snr", "eps"): snr.clamp(max=5) / snr,
        ("min_snr", "v"): snr.clamp(max=5) / (snr + 1),
        ("min_snr", "x0"): snr.clamp(max=5),
        ("simple", "v"): snr / (snr + 1),
    }
    for (weight, prediction), expected in known.items():
        torch.testing.assert_close(output_weight(weight, prediction, level), expected, msg=f"{weight}, {prediction}")


@pytest.mark.parametrize("weight", LOSS_WEIGHTS)
def test_the_loss_does_not_depend_on_what_is_predicted(weight):
    """Networks that make the same error of x0 have the same weighted loss, whatever their output means."""
    schedule = make_schedule("linear", T)
    generator = torch.Generator().manual_seed(0)
    x0, eps, wrong = torch.randn(3, 6, 1, 4, 4, generator=generator, dtype=torch.float64)
    index = torch.tensor([1, 50, 200, 500, 800, 1000])
    level = schedule[index]

    def network_of(prediction):
        guess = from_x0(x0 + 0.1 * wrong, add_noise(x0, eps, level), level)
        return lambda x, t, labels: target(prediction, guess.x0, guess.eps, level)

    losses = [diffusion_loss(network_of(p), schedule, x0, None, index, eps, p, weight) for p in PREDICTIONS]
    for other in losses[1:]:
        # The error is formed in float32, as under mixed precision.
        torch.testing.assert_close(other, losses[0], rtol=2e-2, atol=0)


def test_a_perfect_network_has_no_loss_and_the_network_sees_zero_based_t():
    schedule = make_schedule("cosine", T)
    x0, eps = torch.randn(2, 3, 1, 4, 4)
    seen = []

    def network(x, t, labels):
        seen.append(t.tolist())
        return target("v", x0, eps, schedule[torch.tensor([1, 500, 1000])])

    loss = diffusion_loss(network, schedule, x0, None, torch.tensor([1, 500, 1000]), eps, "v", "v")
    assert loss.max() < 1e-10
    assert seen == [[0.0, 499.0, 999.0]]


def test_levels_are_drawn_uniformly_from_1_to_t():
    torch.manual_seed(0)
    counts = torch.bincount(draw_levels(make_schedule("linear", 20), 40_000, torch.device("cpu")), minlength=21)
    assert counts[0] == 0
    assert len(counts) == 21
    assert counts[1:].min() > 1800
    assert counts[1:].max() < 2200
