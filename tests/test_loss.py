"""Loss weights, timestep samplers, the hybrid loss, and the variational bound."""

import math

import pytest
import torch
from conftest import error_of
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st
from oracles import gaussian_denoiser

from ddpm.diffusion.loss import LOSS_WEIGHTS, PLAIN, check_weight, diffusion_loss, make_weight, output_weight
from ddpm.diffusion.prediction import PREDICTIONS, Prediction, target
from ddpm.diffusion.schedule import SCHEDULES, add_noise, make_schedule
from ddpm.diffusion.timestep_sampling import TIMESTEP_SAMPLERS, LossAwareTimesteps, Stratified
from ddpm.diffusion.variance import VARIANCES, log_variance
from ddpm.diffusion.vlb import prior_bpd, vlb_terms_bpd

T = 1000
CPU = torch.device("cpu")


# --- weights


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_output_weight_has_its_known_forms(schedule):
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
        ("p2", "eps"): 1 / (1 + snr),
        ("p2", "x0"): snr / (1 + snr),
        ("simple", "flow"): snr / (1 + snr.sqrt()) ** 2,
    }
    for (weight, prediction), expected in known.items():
        torch.testing.assert_close(output_weight(make_weight(weight), prediction, level), expected, msg=f"{weight} {prediction}")
    gammas = {("min_snr", 2.0): snr.clamp(max=2) / snr, ("p2", 0.5): (1 + snr) ** -0.5}
    for (weight, gamma), expected in gammas.items():
        torch.testing.assert_close(output_weight(make_weight(weight, gamma), "eps", level), expected)


def test_snr_equals_diffusers():
    theirs = compute_snr(DDPMScheduler(T), torch.arange(T)).double()
    torch.testing.assert_close(make_schedule("linear", T)[torch.arange(1, T + 1)].snr, theirs, rtol=2e-4, atol=0)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_plain_weight_is_the_mse_of_the_output(prediction, zero):
    for schedule in SCHEDULES:
        if not (zero and prediction == "eps"):
            level = make_schedule(schedule, T, zero_terminal_snr=zero)[torch.arange(1, T + 1)]
            weight = output_weight(make_weight(PLAIN[prediction]), prediction, level)
            torch.testing.assert_close(weight, torch.ones(T, dtype=torch.float64), msg=schedule)


def test_check_weight_refuses_a_weight_that_never_trains_the_last_level():
    zero = make_schedule("linear", T, zero_terminal_snr=True)
    for weight in LOSS_WEIGHTS:
        check_weight(weight, make_schedule("linear", T))
        if weight in ("x0", "v", "flow"):
            check_weight(weight, zero)
        else:
            assert error_of(check_weight, weight, zero).key == "train.loss_weight"


def test_make_weight_refuses_a_gamma_without_meaning():
    assert all(error_of(make_weight, weight, 2.0).key == "train.loss_gamma" for weight in ("simple", "x0", "v"))


def wrong_network(prediction, schedule, index, x0, eps, wrong):
    """A network whose error of x0 is a tenth of `wrong`, whatever its output means."""
    level = schedule[index]
    guess = Prediction(x0 + 0.1 * wrong, add_noise(x0, eps, level), level)
    return lambda x, t, labels: target(prediction, guess.x0, guess.eps, level)


@pytest.mark.parametrize("weight", LOSS_WEIGHTS)
def test_diffusion_loss_does_not_depend_on_the_prediction(weight):
    """Networks that make the same error of x0 have the same weighted loss."""
    schedule = make_schedule("linear", T)
    x0, eps, wrong = torch.randn(3, 6, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    index = torch.tensor([1, 50, 200, 500, 800, 1000])

    def loss(prediction):
        network = wrong_network(prediction, schedule, index, x0, eps, wrong)
        return diffusion_loss(network, schedule, x0, None, index, eps, prediction, make_weight(weight))

    for prediction in PREDICTIONS:
        # The error is formed in float32, as under mixed precision.
        torch.testing.assert_close(loss(prediction), loss("x0"), rtol=2e-2, atol=0)


def test_diffusion_loss_of_a_perfect_network_is_zero_and_t_is_zero_based():
    schedule, index = make_schedule("cosine", T), torch.tensor([1, 500, 1000])
    x0, eps = torch.randn(2, 3, 1, 4, 4)
    times = []

    def network(x, t, labels):
        times.append(t.tolist())
        return target("v", x0, eps, schedule[index])

    assert diffusion_loss(network, schedule, x0, None, index, eps, "v", make_weight("v")).max() < 1e-10
    assert times == [[0.0, 499.0, 999.0]]


# --- timestep samplers


@pytest.mark.parametrize("name", TIMESTEP_SAMPLERS)
def test_timestep_samplers_start_uniform_over_1_to_t(name):
    steps = 7
    torch.manual_seed(0)
    draw = TIMESTEP_SAMPLERS[name](steps, CPU)
    index = torch.cat([draw.draw(64)[0] for _ in range(500)])
    counts = torch.bincount(index, minlength=steps + 1)
    assert counts[0] == 0
    assert len(counts) == steps + 1
    expected = 32_000 / steps
    assert (counts[1:] - expected).abs().max() < 6 * math.sqrt(expected)
    assert torch.equal(draw.draw(64)[1], torch.ones(64))


@given(steps=st.integers(2, 1000), count=st.integers(1, 300), seed=st.integers(0, 99))
def test_stratified_spreads_levels_evenly_in_every_batch(steps, count, seed):
    torch.manual_seed(seed)
    index, _ = Stratified(steps, CPU).draw(count)
    assert 1 <= int(index.min()) <= int(index.max()) <= steps
    counts = torch.bincount(index, minlength=steps + 1)[1:]
    # No stretch of the levels holds more or fewer than its share, to one image at either end.
    share = torch.cumsum(counts, 0) - torch.arange(1, steps + 1) * count / steps
    assert float(share.max() - share.min()) <= 2 + 1e-4 * count


def test_stratified_levels_of_each_image_are_uniform():
    torch.manual_seed(0)
    draw = Stratified(20, CPU)
    index = torch.stack([draw.draw(4)[0] for _ in range(8000)])
    for image in (0, 3):
        assert (torch.bincount(index[:, image], minlength=21)[1:] - 400).abs().max() < 6 * 20


def losses_of(index):
    return 0.1 + (index.float() / 20) ** 4


def trained_importance():
    torch.manual_seed(0)
    draw = LossAwareTimesteps(20, CPU)
    for _ in range(40):
        index, _ = draw.draw(64)
        draw.update(index, losses_of(index))
    return draw


def test_importance_is_proportional_to_the_root_mean_square_loss():
    draw = trained_importance()
    expected = losses_of(torch.arange(1, 21))
    torch.testing.assert_close(draw.probabilities(), 0.999 * expected / expected.sum() + 0.001 / 20, rtol=1e-4, atol=0)
    index = torch.cat([draw.draw(1000)[0] for _ in range(40)])
    shares = torch.bincount(index, minlength=21)[1:] / 40_000
    torch.testing.assert_close(shares, draw.probabilities(), atol=0.006, rtol=0)


def test_importance_keeps_the_mean_of_the_loss_and_lowers_its_noise():
    draw, uniform = trained_importance(), TIMESTEP_SAMPLERS["uniform"](20, CPU)

    def estimates(levels):
        pairs = [levels.draw(64) for _ in range(2000)]
        return torch.stack([(weight * losses_of(index)).mean() for index, weight in pairs])

    ours, plain = estimates(draw), estimates(uniform)
    exact = losses_of(torch.arange(1, 21)).mean()
    assert ours.mean() == pytest.approx(float(exact), rel=0.01)
    assert ours.std() < plain.std() / 5


def test_importance_is_uniform_until_every_level_was_drawn_ten_times():
    draw = LossAwareTimesteps(5, CPU)
    for level in (1, 2, 3, 4):
        draw.update(torch.full((10,), level), torch.full((10,), 7.0))
    draw.update(torch.full((9,), 5), torch.full((9,), 7.0))
    assert draw.probabilities().unique().tolist() == pytest.approx([0.2])
    draw.update(torch.tensor([5]), torch.tensor([70.0]))
    # The mean square of nine sevens and a seventy, against four of 49.
    assert draw.probabilities()[4] == pytest.approx(534.1**0.5 / (534.1**0.5 + 28), rel=1e-3)


def test_importance_survives_a_loss_that_is_not_finite():
    for loss in (float("nan"), float("inf"), 1e38):
        draw = trained_importance()
        draw.update(torch.tensor([3, 4]), torch.tensor([loss, 1.0]))
        p = draw.probabilities()
        assert p.isfinite().all()
        assert float(p.sum()) == pytest.approx(1, rel=1e-4)
        assert 1 <= int(draw.draw(100)[0].min()) <= 20


def test_importance_restores_its_state():
    draw, other = trained_importance(), LossAwareTimesteps(20, CPU)
    other.load_state_dict(draw.state_dict())
    assert torch.equal(other.probabilities(), draw.probabilities())


# --- the variational bound


def test_vlb_terms_are_kl_divergences_of_normals():
    """Against torch.distributions, with the posterior written out as in Ho et al. 2020, eq. 6-7."""
    schedule = make_schedule("linear", T)
    x0, x0_hat, x_t = torch.rand(3, 5, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    variance_interp = torch.rand_like(x0)
    index = torch.tensor([2, 10, 300, 700, 1000])
    for k, i in enumerate(index.tolist()):
        t, s = schedule[i], schedule[i - 1]
        beta = 1 - (t.alpha / s.alpha) ** 2
        wide = (1 - s.alpha**2) / (1 - t.alpha**2) * beta

        def mean(clean, t=t, s=s, beta=beta, k=k):
            a = s.alpha * beta / (1 - t.alpha**2)
            b = t.alpha / s.alpha * (1 - s.alpha**2) / (1 - t.alpha**2)
            return a * clean[k] + b * x_t[k]

        widths = {"small": wide, "large": beta, "learned": beta ** variance_interp[k] * wide ** (1 - variance_interp[k])}
        q = torch.distributions.Normal(mean(x0), math.sqrt(wide))
        for variance, width in widths.items():
            p = torch.distributions.Normal(mean(x0_hat), torch.as_tensor(width).sqrt())
            expected = torch.distributions.kl_divergence(q, p).mean() / math.log(2)
            found = vlb_terms_bpd(schedule, index, x0, x0_hat, variance, variance_interp)[k]
            assert float(found) == pytest.approx(float(expected), rel=1e-7)


def test_vlb_terms_with_small_variance_are_half_the_change_of_snr_times_the_error():
    schedule = make_schedule("cosine", T)
    index = torch.tensor([2, 50, 500, 999])
    x0, x0_hat = torch.randn(2, 4, 1, 3, 3, dtype=torch.float64)
    fall = schedule[index - 1].snr - schedule[index].snr
    expected = 0.5 * fall * (x0 - x0_hat).square().flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(vlb_terms_bpd(schedule, index, x0, x0_hat, "small"), expected, rtol=1e-8, atol=0)


def i_mmse(schedule, s=0.5):
    """The steps' sum with the best denoiser of N(mu, s^2), and the integral of its MMSE over the SNR, in nats."""
    snr = schedule[torch.arange(1, schedule.steps + 1)].snr
    steps = 0.5 * (snr[:-1] - snr[1:]) * s**2 / (1 + s**2 * snr[1:])
    return float(steps.sum()), 0.5 * math.log((1 + s**2 * float(snr[0])) / (1 + s**2 * float(snr[-1])))


def test_i_mmse_is_the_lower_bound_and_the_limit_of_the_steps():
    """Guo et al. 2005; Kingma et al. 2021, eq. 14."""
    assert i_mmse(make_schedule("linear", T)) == pytest.approx((4.3685, 3.9122), abs=1e-4)
    excess = []
    for steps in (100, 1000, 10_000):
        total, limit = i_mmse(make_schedule("edm", steps))
        assert total > limit
        excess.append(total - limit)
    assert excess[0] / excess[1] == pytest.approx(10, rel=0.15)
    assert excess[1] / excess[2] == pytest.approx(10, rel=0.02)


def test_vlb_terms_of_the_best_denoiser_add_up_to_i_mmse():
    schedule, mu, s = make_schedule("linear", T), 0.3, 0.5
    generator, index = torch.Generator().manual_seed(0), torch.arange(2, T + 1)
    x0 = mu + s * torch.randn(T - 1, 1, 32, 32, generator=generator, dtype=torch.float64)
    x_t = add_noise(x0, torch.randn(x0.shape, generator=generator, dtype=torch.float64), schedule[index])
    bits = vlb_terms_bpd(schedule, index, x0, gaussian_denoiser(mu, s)(x_t, schedule[index]).x0, "small")
    assert float(bits.sum()) * math.log(2) == pytest.approx(4.3685, rel=0.01)


def test_decoder_is_a_distribution_over_256_values():
    schedule = make_schedule("linear", T)
    values = torch.arange(256, dtype=torch.float64).reshape(256, 1, 1, 1) / 127.5 - 1
    for mean in (-1.0, -0.3, 0.999):
        bits = vlb_terms_bpd(schedule, torch.ones(256, dtype=torch.int64), values, torch.full_like(values, mean), "large")
        assert float((2**-bits).sum()) == pytest.approx(1, abs=1e-6)
        assert abs(values.flatten()[int(bits.argmin())] - mean) < 1 / 127


@pytest.mark.parametrize("variance", VARIANCES)
def test_decoder_is_that_of_the_published_code(variance):
    """Ho et al. 2020, eq. 13, of which bins the first and the last are open; small and large take the width of the step before,
    a learned variance reaches from it to beta_1 (Nichol & Dhariwal 2021's code)."""
    schedule = make_schedule("linear", T)
    x0 = torch.tensor([0, 30, 127, 200, 255]).reshape(-1, 1, 1, 1).double() / 127.5 - 1
    mean = x0 + torch.tensor([0.02, 0.004, -0.01, 0.02, -0.03]).reshape(-1, 1, 1, 1)
    beta = [1 - schedule[1].alpha ** 2, 1 - (schedule[2].alpha / schedule[1].alpha) ** 2]
    before = beta[1] * (1 - schedule[1].alpha ** 2) / (1 - schedule[2].alpha ** 2)
    width = beta[0] ** 0.3 * before**0.7 if variance == "learned" else before
    normal = torch.distributions.Normal(mean, math.sqrt(width))
    upper, lower = normal.cdf(x0 + 1 / 255), normal.cdf(x0 - 1 / 255)
    upper[-1], lower[0] = 1, 0
    found = vlb_terms_bpd(schedule, torch.ones(5, dtype=torch.int64), x0, mean, variance, torch.full_like(x0, 0.3))
    torch.testing.assert_close(found, -torch.log2(upper - lower).flatten(), rtol=1e-8, atol=0)
    above = log_variance(variance, schedule, torch.tensor([2]), x0[:1], torch.tensor(0.3))
    widths = {"small": before, "large": beta[1], "learned": beta[1] ** 0.3 * before**0.7}
    assert float(above) == pytest.approx(math.log(widths[variance]))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("value", [-1.0, 0.2, 1.0])
def test_decoder_is_exact_in_float32_for_any_mean(sign, value):
    schedule = make_schedule("linear", T)
    off = torch.linspace(0, 0.5, 60).reshape(-1, 1, 1, 1)

    def bits(dtype):
        x0 = torch.full_like(off, value, dtype=dtype)
        return vlb_terms_bpd(schedule, torch.ones(60, dtype=torch.int64), x0, x0 + sign * off.to(dtype), "large")

    torch.testing.assert_close(bits(torch.float32).double(), bits(torch.float64), rtol=2e-4, atol=1e-5)
    mean = torch.full((1, 1, 1, 1), value + sign * 0.4, requires_grad=True)
    vlb_terms_bpd(schedule, torch.tensor([1]), torch.full((1, 1, 1, 1), value), mean, "large").backward()
    assert mean.grad.isfinite().all()
    # Away from the image it grows, but where the outer bins are open.
    assert float(mean.grad) * sign > 0 or value * sign == 1


def test_prior_bpd_is_the_kl_divergence_to_noise():
    x0, normal = torch.rand(3, 1, 4, 4, dtype=torch.float64) * 2 - 1, torch.distributions.Normal(0.0, 1.0)
    for name in SCHEDULES:
        last = make_schedule(name, T)[T]
        kl = torch.distributions.kl_divergence(torch.distributions.Normal(last.alpha * x0, last.sigma), normal)
        torch.testing.assert_close(prior_bpd(x0, last), kl.flatten(1).mean(1) / math.log(2), atol=1e-12, rtol=1e-6)


def test_hybrid_loss_trains_only_the_variance_by_the_bound():
    schedule, index = make_schedule("linear", T), torch.tensor([1, 300, 900])
    x0, eps = torch.rand(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    mean, spread = torch.zeros(2, 3, 1, 4, 4, dtype=torch.float64)
    mean, spread = mean.requires_grad_(), spread.requires_grad_()

    def loss(network):
        return diffusion_loss(network, schedule, x0, None, index, eps, "eps", make_weight("simple"))

    hybrid = loss(lambda x, t, labels: torch.cat([mean, spread], dim=1))
    simple = loss(lambda x, t, labels: mean)
    of_mean, of_spread = torch.autograd.grad(hybrid.sum(), [mean, spread])
    torch.testing.assert_close(of_mean, torch.autograd.grad(simple.sum(), mean)[0])
    assert of_spread.abs().sum(dim=(1, 2, 3)).min() > 0

    x_t = add_noise(x0, eps, schedule[index])
    x0_hat = (x_t / schedule[index].like(x_t).alpha).clamp(-1, 1)
    bits = vlb_terms_bpd(schedule, index, x0, x0_hat, "learned", torch.full_like(x0, 0.5))
    torch.testing.assert_close(hybrid - simple, (1e-3 * T * bits).float(), rtol=1e-3, atol=0, check_dtype=False)
    assert set(VARIANCES) == {"small", "large", "learned"}
