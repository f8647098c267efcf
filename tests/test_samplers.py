"""Step rules against diffusers and k-diffusion, against the exact solution on Gaussian data, and against each other."""

import itertools
import math

import diffusers
import numpy as np
import pytest
import torch
from conftest import ROOT, diffusion
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import LINEAR, T, gaussian_denoiser, noises, nonlinear_network, ode_end, output_law, rule, run
from pydantic import ValidationError
from test_unet import settings as unet_settings

from ddpm.core.files import InputError
from ddpm.core.seeds import seeded
from ddpm.core.yaml_files import read_yaml
from ddpm.datasets.registry import DIGITS
from ddpm.diffusion.prediction import PREDICTIONS, Prediction
from ddpm.diffusion.schedule import SCHEDULES, Level, combine, make_schedule
from ddpm.diffusion.variance import large, learned, small
from ddpm.networks.unet import UNet
from ddpm.sampling.denoiser import network_denoiser, thresholded
from ddpm.sampling.generate import generate_set
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.noise import ImageNoise
from ddpm.sampling.plan import make_plan
from ddpm.sampling.samplers import SAMPLERS, euler_step, sample
from ddpm.sampling.settings import SampleDDIM
from ddpm.sampling.time_grid import SPACINGS, make_grid, with_churn

RULES = {
    **{name: rule(name) for name in SAMPLERS},
    "ddpm large": rule("ddpm", variance="large"),
    "ddim eta .5": rule("ddim", eta=0.5),
    "ddim eta 1": rule("ddim", eta=1.0),
}
DETERMINISTIC = ["ddim", "euler", "heun", "ab2", "dpmpp_2m"]
SECOND_ORDER = ["heun", "ab2", "dpmpp_2m"]


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


def run_peer(scheduler, steps, x, noise, monkeypatch, network=nonlinear_network, **options):
    """Runs the peer's loop with our noise in place of its own."""
    scheduler.set_timesteps(steps)
    supply = iter(noise)
    for t in scheduler.timesteps:
        fresh = next(supply)
        module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
        monkeypatch.setattr(module, "randn_tensor", lambda *a, fresh=fresh, **k: fresh)
        output = network(x, torch.full((len(x),), float(t), dtype=torch.float64))
        x = scheduler.step(output, t, x, **options).prev_sample
    return x


def assert_agree(ours, theirs, tolerance):
    """Compares both in units of the largest value: without clipping, the images of a fake network grow."""
    scale = theirs.abs().max()
    torch.testing.assert_close(ours / scale, theirs / scale, atol=tolerance, rtol=0)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", T), ("leading", 50), ("linspace", 40)])
def test_ddpm_agrees_with_diffusers(variance, spacing, steps, monkeypatch):
    x, *noise = noises(steps + 1)
    ours = run(rule("ddpm", variance=variance), make_grid(spacing, LINEAR, steps), x, noise)
    scheduler = peer(diffusers.DDPMScheduler, variance_type=f"fixed_{variance}", clip_sample=False, timestep_spacing=spacing)
    assert_agree(ours, run_peer(scheduler, steps, x, noise, monkeypatch), 6e-13)


@pytest.mark.parametrize("steps", [T, 50])
def test_ddpm_learned_variance_agrees_with_diffusers(steps, monkeypatch):
    def network(x, t, labels=None):
        return torch.cat([nonlinear_network(x, t), torch.tanh(x + 0.3)], dim=1)

    x, *noise = noises(steps + 1)
    denoiser = network_denoiser(network, "eps", None)
    ours = run(rule("ddpm", variance="learned"), make_grid("leading", LINEAR, steps), x, noise, denoiser)
    scheduler = peer(diffusers.DDPMScheduler, variance_type="learned_range", clip_sample=False, timestep_spacing="leading")
    assert_agree(ours, run_peer(scheduler, steps, x, noise, monkeypatch, network), 6e-13)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 50), ("leading", 7), ("trailing", 50), ("trailing", T)])
def test_ddim_agrees_with_diffusers(eta, spacing, steps, monkeypatch):
    x, *noise = noises(steps + 1)
    ours = run(rule("ddim", eta=eta), make_grid(spacing, LINEAR, steps), x, noise)
    options = {"set_alpha_to_one": True, "steps_offset": 0, "clip_sample": False, "timestep_spacing": spacing}
    assert_agree(ours, run_peer(peer(diffusers.DDIMScheduler, **options), steps, x, noise, monkeypatch, eta=eta), 3e-14)


def test_ddim_clipped_agrees_with_diffusers(monkeypatch):
    x, *noise = noises(51)
    denoiser = thresholded(network_denoiser(nonlinear_network, "eps", None))
    ours = run(rule("ddim", eta=0.0), make_grid("leading", LINEAR, 50), x, noise, denoiser)
    scheduler = peer(diffusers.DDIMScheduler, set_alpha_to_one=True, steps_offset=0, clip_sample=True)
    assert_agree(ours, run_peer(scheduler, 50, x, noise, monkeypatch, use_clipped_model_output=True), 4e-15)


@pytest.mark.parametrize(("name", "algorithm"), [("dpmpp_2m", "dpmsolver++"), ("dpmpp_2m_sde", "sde-dpmsolver++")])
@pytest.mark.parametrize("steps", [2, 10, 25])
def test_dpmpp_agrees_with_diffusers(name, algorithm, steps, monkeypatch):
    """On the peer's own time steps, which are the integers nearest to n + 1 evenly spaced ones."""
    x, *noise = noises(steps + 1)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=T, algorithm_type=algorithm, solver_order=2, solver_type="midpoint", final_sigmas_type="zero",
        lower_order_final=True, beta_start=1e-4, beta_end=0.02,
    )  # fmt: skip
    theirs = run_peer(scheduler, steps, x, noise, monkeypatch)
    grid = [*(int(t) + 1 for t in scheduler.timesteps), 0]
    assert_agree(run(rule(name), grid, x, noise), theirs, 1e-6)


@pytest.mark.parametrize("steps", [10, 28, 112])  # 999 / (steps - 1) is an integer, as the peers need
@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("euler", diffusers.EulerDiscreteScheduler, {}),
        ("heun", diffusers.HeunDiscreteScheduler, {}),
        ("ab2", diffusers.LMSDiscreteScheduler, {"order": 2}),
    ],
)
def test_ode_solvers_agree_with_diffusers(name, kind, options, steps):
    """The peers walk y = x / alpha over sigma / alpha, as k-diffusion does, in single precision."""
    x = noises(1)[0]
    scheduler = kind(num_train_timesteps=T, beta_start=1e-4, beta_end=0.02, timestep_spacing="linspace")
    scheduler.set_timesteps(steps)
    y = x / LINEAR[T].alpha
    for t in scheduler.timesteps:
        output = nonlinear_network(scheduler.scale_model_input(y, t), torch.full((2,), float(t), dtype=torch.float64))
        y = scheduler.step(output, t, y, **options).prev_sample.double()
    assert_agree(run(rule(name), make_grid("linspace", LINEAR, steps), x), y, 1e-6)


K_DIFFUSION = {
    "euler": ("sample_euler", {}),
    "heun": ("sample_heun", {}),
    "ab2": ("sample_lms", {"order": 2}),
    "dpmpp_2m": ("sample_dpmpp_2m", {}),
    "dpmpp_2m_sde": ("sample_dpmpp_2m_sde", {}),
}


@pytest.mark.parametrize("churn", [0.0, 3.0])
@pytest.mark.parametrize("name", K_DIFFUSION)
def test_ode_and_sde_solvers_agree_with_k_diffusion(name, churn, monkeypatch):
    """In double precision, at times between the levels too; needs the package k-diffusion, which is large."""
    peer_sampling = pytest.importorskip("k_diffusion.sampling", reason="k-diffusion is not installed")
    if churn and name not in ("euler", "heun"):
        pytest.skip("k-diffusion has no churn for this sampler")
    x, *noise = noises(60)
    plain = make_grid("karras", LINEAR, 15)
    # From below T, where churn is possible.
    plain = np.append(plain[:-1] * 0.9 + 0.1, 0.0)
    grid = with_churn(plain, LINEAR, churn) if churn else plain
    network, supply = network_denoiser(nonlinear_network, "eps", None), iter(noise)

    def model(y, sigma):
        level = LINEAR[float(LINEAR.position(np.array([-math.log(float(sigma[0]))]))[0])]
        return network(level.alpha * y, level).x0

    function, options = K_DIFFUSION[name]
    if name == "dpmpp_2m_sde":
        options = {"eta": 1.0, "noise_sampler": lambda *sigmas: next(supply)}
    if churn:
        options = {"s_churn": churn}
        monkeypatch.setattr(torch, "randn_like", lambda x: next(supply))
    levels = [LINEAR[position] for position in plain]
    sigmas = torch.tensor([level.sigma / level.alpha for level in levels], dtype=torch.float64)
    theirs = getattr(peer_sampling, function)(model, x / levels[0].alpha, sigmas, disable=True, **options)
    assert_agree(run(rule(name), grid, x, noise), theirs, 1e-11)


def midpoint_step(denoiser, x, t, s, noise, state):
    """DPM-Solver-2 (Lu et al. 2022a, algorithm 1): a rule of one's own that evaluates the network between t and s."""
    schedule, ratios = state["schedule"], [math.log(level.alpha / level.sigma) for level in (t, s)]
    middle = schedule[float(schedule.position(np.array(sum(ratios) / 2)))]
    prediction = denoiser(euler_step(denoiser, x, t, middle, noise, state)[0], middle)
    return combine(s.alpha / t.alpha, x, s.sigma - s.alpha / t.alpha * t.sigma, prediction.eps), prediction.x0


@pytest.mark.parametrize("spacing", ["log_snr", "karras"])
@pytest.mark.parametrize("name", [*DETERMINISTIC, "midpoint"])
def test_step_rules_converge_with_their_order(name, spacing):
    """Twice the steps halve the error of a method of order 1, and quarter it for order 2."""
    levels, x = make_schedule("cosine", T), noises(1)[0]
    noisy, clean = levels.log_ratio[899], levels.log_ratio[49]
    errors = []
    for steps in (320, 640):
        ratios = np.linspace(noisy, clean, steps + 1)
        if spacing == "karras":
            ratios = -7 * np.log(np.linspace(math.exp(-noisy / 7), math.exp(-clean / 7), steps + 1))
        grid = levels.position(ratios)
        out = run({**RULES, "midpoint": midpoint_step}[name], grid, x, denoiser=gaussian_denoiser(), schedule=levels)
        errors.append(float((out - ode_end(x, levels, 900, 50)).abs().max()))
    order, expected = math.log2(errors[0] / errors[1]), 2 if name in (*SECOND_ORDER, "midpoint") else 1
    assert order == pytest.approx(expected, abs=0.05 * expected)
    assert errors[1] < (1e-4 if expected == 2 else 3e-3)


@pytest.mark.parametrize(
    ("name", "steps", "expected"),
    [
        ("ddim", T, 0.49850),
        ("euler", T, 0.49850),
        ("ddim eta 1", T, 0.49611),
        ("ddpm", T, 0.49611),
        ("ddpm large", T, 0.50075),
        ("ddpm large", 10, 0.49390),
        ("ddim", 10, 0.36995),
        ("ddim eta 1", 10, 0.33348),
    ],
)
def test_step_rules_have_the_known_law_on_gaussian_data(name, steps, expected):
    mean, sd = output_law(RULES[name], make_grid("trailing", LINEAR, steps))
    assert sd == pytest.approx(expected, abs=1e-5)
    # x_T starts at mean 0 instead of alpha_T * mu, which only many steps correct.
    assert mean == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("name", ["heun", "ab2", "dpmpp_2m", "dpmpp_2m_sde"])
def test_second_order_rules_reach_the_law_of_the_data_in_few_steps(name):
    grid = make_grid("log_snr", LINEAR, 80)
    mean, sd = output_law(RULES[name], grid)
    assert mean == pytest.approx(0.3, abs=0.002)
    assert sd == pytest.approx(0.5, abs=0.0025)
    assert abs(sd - 0.5) < abs(output_law(RULES["ddim"], grid)[1] - 0.5) / 3


def test_heun_with_churn_keeps_the_law_of_the_data():
    grid = make_grid("log_snr", LINEAR, 200)
    rough = with_churn(grid, LINEAR, 40.0)
    mean, sd = output_law(RULES["heun"], rough)
    assert len(rough) > 1.9 * len(grid)
    # The added noise corrects that x_T started at mean 0.
    assert mean == pytest.approx(0.3, abs=1e-6)
    assert sd == pytest.approx(0.5, abs=0.0015)


@pytest.mark.parametrize("steps", [1, 10, T])
@pytest.mark.parametrize("name", [name for name in RULES if name not in ("ddpm large", "dpmpp_2m_sde")])
def test_step_rules_recover_a_point_mass(name, steps):
    x, *noise = noises(2 * steps + 1)

    def denoiser(x, level):
        return Prediction(torch.full_like(x, 0.7), x, level)

    out = run(RULES[name], make_grid("trailing", LINEAR, steps), x, noise, denoiser)
    torch.testing.assert_close(out, torch.full_like(x, 0.7), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp_2m_sde"])
def test_step_rules_keep_the_weights_of_a_mixture(name):
    """p(x0 = 1) = 0.8, p(x0 = -1) = 0.2."""

    def denoiser(x, level):
        log_odds = math.log(4) + 2 * level.alpha * x / level.sigma**2
        return Prediction(torch.tanh(log_odds / 2), x, level)

    schedule, generator = make_schedule("cosine", 200), torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, 1, 1, generator=generator, dtype=torch.float64)
    noise = (torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in itertools.count())
    *_, last = sample(denoiser, RULES[name], schedule, make_grid("trailing", schedule, 200), x, lambda: next(noise))
    torch.testing.assert_close(last.x.abs(), torch.ones_like(x), atol=2e-3, rtol=0)
    assert (last.x > 0).double().mean() == pytest.approx(0.8, abs=0.025)


def test_ddim_with_eta_1_over_all_levels_is_ancestral_sampling():
    x, *noise = noises(T + 1)
    grid = make_grid("trailing", LINEAR, T)
    assert_agree(run(RULES["ddim eta 1"], grid, x, noise), run(RULES["ddpm"], grid, x, noise), 1e-12)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_euler_is_ddim_with_eta_0(spacing):
    grid, x = make_grid(spacing, LINEAR, 20), noises(1)[0]
    assert torch.equal(run(RULES["euler"], grid, x), run(RULES["ddim"], grid, x))


class Stretched:
    """The linear schedule with x_t multiplied by 1 + 2 t / T, which has the same noise levels."""

    def __getitem__(self, position):
        level, factor = LINEAR[position], self.factor(position)
        return Level(level.t, level.alpha * factor, level.sigma * factor)

    @staticmethod
    def factor(position):
        return 1 + 2 * position / T

    @classmethod
    def denoiser(cls, plain):
        return lambda x, level: plain(x / cls.factor(level.t + 1), LINEAR[level.t + 1])


@pytest.mark.parametrize("name", [name for name in RULES if name != "ddpm large"])  # whose beta is that of x_t, by definition
def test_step_rules_are_invariant_to_the_scale_of_x(name):
    """The rules hold for any alpha and sigma, EDM's alpha = 1 among them, not for alpha^2 + sigma^2 = 1 alone."""
    x, *noise = noises(60)
    grid = with_churn(make_grid("log_snr", LINEAR, 20), LINEAR, 5.0)
    plain = network_denoiser(lambda *a: torch.cat([nonlinear_network(*a), torch.tanh(a[0])], dim=1), "v", None)
    start = Stretched.factor(T) * x
    stretched = run(RULES[name], grid, start, noise, Stretched.denoiser(plain), Stretched())
    assert_agree(stretched, run(RULES[name], grid, x, noise, plain), 1e-12)


@pytest.mark.parametrize("variance_interp", [0.0, 0.25, 1.0])
@given(t=st.integers(3, T), lower=st.integers(1, 998))
def test_learned_variance_interpolates_the_fixed_ones_in_log(variance_interp, t, lower):
    t, s = LINEAR[t], LINEAR[max(1, t - lower)]
    expected = (1 - variance_interp) * math.log(small(t, s)) + variance_interp * math.log(large(t, s))
    assert float(learned(t, s, torch.tensor(variance_interp, dtype=torch.float64)).log()) == pytest.approx(expected, rel=1e-9)


@given(t=st.integers(2, T), lower=st.integers(1, 999))
def test_variances_are_ordered_and_zero_at_the_clean_level(t, lower):
    t, s = LINEAR[t], LINEAR[max(1, t - lower)]
    if t.sigma > s.sigma:
        assert 0 < small(t, s) < large(t, s)
    assert small(t, LINEAR[0]) == large(t, LINEAR[0]) == learned(t, LINEAR[0], torch.ones(1)) == 0


@pytest.mark.parametrize("name", RULES)
def test_step_rules_add_no_noise_to_the_final_image(name):
    x, fresh = noises(2)
    ends = [run(RULES[name], [1, 0], x, [factor * fresh]) for factor in (1, 100)]
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=40)
@given(data=st.data(), spacing=st.sampled_from(list(SPACINGS)))
def test_step_rules_stay_finite_on_every_schedule(name, data, spacing):
    """sigma = 0 at the end, and alpha = 0 at the start where the terminal SNR is zero."""
    schedule_name = data.draw(st.sampled_from(list(SCHEDULES)))
    zero = data.draw(st.booleans())
    prediction = data.draw(st.sampled_from([p for p in PREDICTIONS if not (zero and p == "eps")]))
    steps = data.draw(st.integers(1, 12))
    churn = data.draw(st.sampled_from([0.0, 0.5, 10.0]))
    schedule = diffusion(100, zero_terminal_snr=zero).make(schedule_name)
    grid = make_grid(spacing, schedule, steps)
    if churn:
        grid = with_churn(grid, schedule, churn)
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    denoiser = thresholded(network_denoiser(nonlinear_network, prediction, None))
    frames = list(sample(denoiser, RULES[name], schedule, grid, x, lambda: torch.ones_like(x)))
    assert all(frame.x.isfinite().all() and frame.x.dtype == torch.float32 for frame in frames)
    assert frames[-1].position == 0
    if name != "ab2":  # which extrapolates to the end, too
        torch.testing.assert_close(frames[-1].x, frames[-1].x0)


@pytest.mark.parametrize("name", ["ab2", "dpmpp_2m"])
def test_multistep_rules_restart_after_re_noising(name):
    """After re-noising, the rule behaves like one that starts there."""
    x, fresh = noises(2)
    down, up = [800, 500, 300], [600, 200]
    out = run(RULES[name], np.array(down + up, float), x, itertools.repeat(fresh))
    ratio = LINEAR[600].alpha / LINEAR[300].alpha
    noised = ratio * run(RULES[name], down, x) + math.sqrt(LINEAR[600].sigma ** 2 - (ratio * LINEAR[300].sigma) ** 2) * fresh
    torch.testing.assert_close(out, run(RULES[name], up, noised), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (3, 200, 200)])
def test_image_noise_does_not_depend_on_the_batch(shape):
    def draw(first, count):
        noise = ImageNoise(torch.device("cpu"), (count, *shape), first, 4, 0, "test")
        return torch.stack([noise() for _ in range(6)])

    whole = draw(0, 7)
    assert torch.equal(whole, torch.cat([draw(0, 3), draw(3, 1), draw(4, 3)], dim=1))
    assert whole.flatten(2)[..., 0].unique().numel() == 6 * 7
    assert whole.mean() == pytest.approx(0, abs=4 / math.sqrt(whole.numel()))
    assert whole.std() == pytest.approx(1, abs=4 / math.sqrt(whole.numel()))
    assert torch.equal(whole[0, 2], torch.randn(1, *shape, generator=seeded("cpu", 0, "test", 2))[0])


def sampling_of(calls=None, **changes):
    """A model with a fake network of a cosine schedule of 50 levels, and the plan of section sample_ddim with these changes."""

    class Network(torch.nn.Linear):
        outputs, takes_labels, takes_text = 1, True, False

        def forward(self, x, t, labels):
            if calls is not None:
                calls.append(labels is None)
            return nonlinear_network(x, t)

    data = {"shape": [8, 8, 1], "class_names": ["a", "b"]}
    model = DiffusionModel(Network(1, 1), make_schedule("cosine", 50), "v", data, supports_cfg=True)
    section = read_yaml(ROOT / "params.yaml")["sample_ddim"]
    return model, SampleDDIM(**{**section, "steps": 6, **changes}).plan(model)


@pytest.mark.parametrize("changes", [{}, {"eta": 1.0}, {"sampler": "dpmpp_2m_sde"}, {"sampler": "heun", "churn": 2.0}])
def test_generate_set_does_not_depend_on_the_batch_size(changes):
    model, plan = sampling_of(**changes)
    whole, parts, single = (generate_set(model, plan, 10, size, 0, "ddim").arrays for size in (10, 3, 1))
    for name in whole:
        assert np.array_equal(whole[name], parts[name])
        assert np.array_equal(whole[name], single[name])
    assert len(np.unique(whole["arr_0"].reshape(10, -1), axis=0)) == 10
    assert not np.array_equal(whole["arr_0"], generate_set(model, plan, 10, 10, 1, "ddim").arrays["arr_0"])
    assert (whole["trajectory_level"][0], whole["trajectory_level"][-1]) == (50, 0)
    assert (whole["trajectory_x0"][0] == 128).all()
    assert whole["trajectory_x"].shape == whole["trajectory_x0"].shape == (7, 8, 8, 8, 1)
    assert np.array_equal(whole["trajectory_x"][-1], whole["arr_0"][:8])


@pytest.mark.parametrize(
    ("changes", "evaluations", "without_class"),
    [
        ({}, 6, 0),
        ({"sampler": "heun"}, 11, 0),
        ({"sampler": "heun", "churn": 3.0}, 11, 0),
        ({"guidance": 0.0}, 6, 6),
        ({"guidance": 2.0}, 12, 6),
        ({"guidance": 2.0, "sampler": "heun"}, 22, 11),
        ({"guidance": 2.0, "guidance_interval": [0.5, 2.0]}, 9, 3),
        ({"steps": "all"}, 50, 0),
    ],
)
def test_plan_nfe_counts_network_evaluations(changes, evaluations, without_class):
    calls = []
    model, plan = sampling_of(calls, **changes)
    result = generate_set(model, plan, 4, 4, 0, "ddim")
    assert plan.nfe == len(calls) == result.cost["nfe"] == evaluations
    assert sum(calls) == without_class
    assert ("arr_1" in result.arrays) == (changes.get("guidance") != 0.0)


@pytest.mark.parametrize(
    ("stochastic", "changes"),
    [
        *((False, changes) for changes in ({}, {"sampler": "heun"})),
        *((True, changes) for changes in ({"eta": 0.1}, {"churn": 1.0}, {"sampler": "ddpm"}, {"sampler": "dpmpp_2m_sde"})),
    ],
)
def test_plan_stochastic_says_whether_steps_draw_noise(stochastic, changes):
    model, plan = sampling_of(**changes)
    assert plan.stochastic == stochastic
    draws, x = [], torch.randn(1, 1, 4, 4)
    list(sample(plan.denoiser(None), plan.rule, model.schedule, plan.grid, x, lambda: draws.append(1) or x))
    assert bool(draws) == stochastic


def test_sample_yields_a_frame_per_step_of_a_unet():
    network = UNet(unet_settings(attention_levels=[1], middle_attention=True), (8, 8, 1), DIGITS).eval()
    denoiser = thresholded(network_denoiser(network, "v", torch.arange(4)))
    grid = make_grid("trailing", LINEAR, 5)
    frames = list(sample(denoiser, RULES["heun"], LINEAR, grid, torch.randn(4, 1, 8, 8), lambda: None))
    assert [frame.position for frame in frames] == [800, 600, 400, 200, 0]
    assert all(frame.x.shape == frame.x0.shape == (4, 1, 8, 8) for frame in frames)


# Schedules of which many levels have sigma = 1 in float64, and others with extreme options.
EXTREME = [
    ("cosine", {"max_beta": 1 - 1e-12}),
    ("cosine", {"s": 0.0}),
    ("sigmoid", {"tau": 0.1}),
    ("sigmoid", {"start": -3.0, "end": 30.0}),
    ("edm", {"sigma_min": 1e-5, "sigma_max": 1e5}),
    ("linear", {}),
]


def check_evaluations(name, options, total):
    """Every sampler, spacing and churn: no exception, finite images, and as many evaluations as `plan.nfe` reports."""
    calls = []

    class Network(torch.nn.Linear):
        takes_labels, takes_text, outputs = False, False, 1

        def forward(self, x, t, labels=None):
            calls.append(1)
            return nonlinear_network(x, t)

    for zero in (False, True):
        try:
            schedule = make_schedule(name, total, zero_terminal_snr=zero, allow_nonzero_terminal_snr=True, **options)
        except InputError:  # levels that float64 cannot tell apart are refused
            continue
        model = DiffusionModel(Network(1, 1), schedule, "v", {"shape": [1, 1, 1], "class_names": ["a"]})
        for spacing, rule_name, churn in itertools.product(SPACINGS, RULES, (0.0, 1e-300, 1e-3, 1e5)):
            sampler, _, option = rule_name.partition(" ")
            if churn and SAMPLERS[sampler].multistep:
                continue
            more = {"variance": "large"} if option == "large" else {"eta": float(option[4:])} if option else {}
            for steps in {1, 2, min(10, total)}:
                plan = make_plan(model, sampler=sampler, steps=steps, spacing=spacing, churn=churn, **more)
                calls.clear()
                noise = itertools.cycle(noises(3, (1, 1, 1, 1)))
                case = (name, options, total, zero, spacing, rule_name, churn, steps)
                frames = list(sample(plan.denoiser(None), plan.rule, schedule, plan.grid, next(noise), lambda: next(noise)))  # noqa: B023
                assert (len(calls), len(frames)) == (plan.nfe, steps), case
                assert frames[-1].x.isfinite().all(), case


@pytest.mark.parametrize(("name", "options"), [("cosine", {"max_beta": 1 - 1e-12}), ("sigmoid", {"tau": 0.1}), ("linear", {})])
def test_samplers_report_their_evaluations_where_sigma_saturates(name, options):
    check_evaluations(name, options, 12)


@pytest.mark.slow
@pytest.mark.parametrize("total", [2, 10, 12, 16, 1000, 100_000])
@pytest.mark.parametrize(("name", "options"), EXTREME)
def test_samplers_report_their_evaluations_at_extreme_settings(name, options, total):
    check_evaluations(name, options, total)


@pytest.mark.parametrize("key", ["samples", "batch_size", "steps", "churn", "guidance"])
def test_sampling_refuses_numbers_without_a_meaning(key):
    section = read_yaml(ROOT / "params.yaml")["sample_ddim"]
    with pytest.raises(ValidationError, match=key):
        SampleDDIM(**{**section, key: 1e300 if key in ("churn", "guidance") else 10**20})
