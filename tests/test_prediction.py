"""Predictions and their inversion by one linear solve, at every level."""

import pytest
import torch
from conftest import diffusion
from hypothesis import given
from hypothesis import strategies as st

from ddpm.diffusion.prediction import PREDICTIONS, Prediction, determinant, target, to_prediction
from ddpm.diffusion.schedule import SCHEDULES, add_noise, make_schedule

T = 1000


@pytest.mark.parametrize("prediction", PREDICTIONS)
@given(index=st.integers(1, T), seed=st.integers(0, 2**32 - 1), schedule=st.sampled_from(list(SCHEDULES)), zero=st.booleans())
def test_to_prediction_inverts_target(prediction, index, seed, schedule, zero):
    x0, eps = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    level = diffusion(T, zero_terminal_snr=zero and prediction != "eps").make(schedule)[index]
    x_t = add_noise(x0, eps, level)
    predicted = to_prediction(prediction, target(prediction, x0, eps, level), x_t, level)
    # The division by a small determinant loses as much precision.
    scale = 1 / min(1, abs(determinant(prediction, level)))
    small = 1e-13 * scale / level.sigma
    torch.testing.assert_close(predicted.x0, x0, atol=1e-13 * scale, rtol=0)
    torch.testing.assert_close(predicted.eps, eps, atol=small, rtol=0)
    torch.testing.assert_close(level.alpha * predicted.x0 + level.sigma * predicted.eps, x_t, atol=1e-12, rtol=0)


def test_targets_are_those_of_the_papers():
    x0, eps = torch.randn(2, 2, 1, 3, 3, dtype=torch.float64)
    level = make_schedule("linear", T)[400]
    torch.testing.assert_close(target("eps", x0, eps, level), eps)
    torch.testing.assert_close(target("x0", x0, eps, level), x0)
    torch.testing.assert_close(target("v", x0, eps, level), level.alpha * eps - level.sigma * x0)
    torch.testing.assert_close(target("flow", x0, eps, level), eps - x0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_to_prediction_of_a_batch_equals_each_level(prediction):
    schedule, index = make_schedule("cosine", T), torch.tensor([1, 300, 999])
    output, x_t = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    together = to_prediction(prediction, output, x_t, schedule[index])
    for k, i in enumerate(index.tolist()):
        alone = to_prediction(prediction, output[k : k + 1], x_t[k : k + 1], schedule[i])
        torch.testing.assert_close(together.x0[k : k + 1], alone.x0)
        torch.testing.assert_close(together.eps[k : k + 1], alone.eps)


def test_prediction_x0_and_eps_give_x_t():
    x_t, x0 = torch.randn(2, 5, 1, 3, 3, dtype=torch.float64)
    level = make_schedule("linear", T)[torch.tensor([1, 10, 100, 500, 1000])]
    predicted = Prediction(x0, x_t, level)
    torch.testing.assert_close(add_noise(predicted.x0, predicted.eps, level), x_t)
