"""Small ways to break the mathematics, and whether the tests notice.

    python tests/tools/mutations.py [NAME ...] [--jobs N]

Every mutation replaces one piece of text in a copy of the project and runs the tests that should fail. A survivor is a hole in
the tests. NAME chooses by what is broken (heun, cosine, ...). Needs os.fork: one import of PyTorch serves all runs.
"""

import argparse
import ast
import contextlib
import gc
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SAMPLERS, GRID, EDITING = "ddpm/sampling/samplers.py", "ddpm/sampling/grid.py", "ddpm/sampling/editing.py"
SCHEDULE, VARIANCE, BOUND = "ddpm/diffusion/schedule.py", "ddpm/diffusion/variance.py", "ddpm/diffusion/bound.py"
DENOISER, ROWS, LOSS = "ddpm/sampling/denoiser.py", "ddpm/diffusion/parameterization.py", "ddpm/diffusion/loss.py"
LEVELS, LIKELIHOOD = "ddpm/diffusion/levels.py", "ddpm/evaluation/likelihood.py"
SETTINGS, NOISE, MORPH = "ddpm/sampling/settings.py", "ddpm/sampling/noise.py", "ddpm/sampling/morph.py"
CAPTIONS, CONTENT = "ddpm/networks/captions.py", "ddpm/networks/conditioning.py"
MASKS, TRAINER = "ddpm/training/masks.py", "ddpm/training/trainer.py"

# What is broken -> the test files that must notice.
TESTS = {
    SAMPLERS: ["test_samplers.py"],
    VARIANCE: ["test_samplers.py", "test_loss.py"],
    GRID: ["test_grid.py", "test_editing.py"],
    EDITING: ["test_editing.py"],
    MORPH: ["test_morph.py"],
    SCHEDULE: ["test_schedule.py"],
    BOUND: ["test_loss.py"],
    DENOISER: ["test_denoiser.py"],
    ROWS: ["test_parameterization.py", "test_denoiser.py"],
    LOSS: ["test_loss.py"],
    LEVELS: ["test_loss.py"],
    LIKELIHOOD: ["test_evaluation.py"],
    SETTINGS: ["test_samplers.py", "test_bad_input.py"],
    NOISE: ["test_samplers.py"],
    CAPTIONS: ["test_captions.py"],
    CONTENT: ["test_conditioning.py"],
    MASKS: ["test_masks.py"],
    TRAINER: ["test_training.py"],
}

# (what is broken, file, function or class) -> [(text that stands in it once, what it becomes)]
BREAKS: dict[tuple[str, str, str], list[tuple[str, str]]] = {
    ("ancestral", SAMPLERS, "ancestral_step"): [
        ("s.sigma**2 * t.alpha", "s.sigma * t.alpha"),
        ("s.sigma**2 * t.alpha", "s.sigma**2 * s.alpha"),
        ("(s.alpha * t.sigma)", "(s.alpha * s.sigma)"),
        ("(s.alpha * t.sigma)", "(t.alpha * t.sigma)"),
        ("prediction.x0, t, s,", "prediction.x0, s, t,"),
        ("prediction.x0, t, s,", "x, t, s,"),
        ("** 0.5, noise()", ", noise()"),
        ("if s.sigma > 0 else mean", "if s.sigma > 0.5 else mean"),
        ("(1.0, mean,", "(-1.0, mean,"),
        ("VARIANCES[variance](t, s,", "VARIANCES['small'](t, s,"),
        ("prediction.mix)", "1 - prediction.mix)"),
    ],
    ("variance", VARIANCE, "small"): [
        ("s.sigma**2 - (", "s.sigma**2 + ("),
        ("s.sigma**2 * t.alpha", "s.sigma * t.alpha"),
        ("(s.alpha * t.sigma)) ** 2", "(s.alpha * t.sigma))"),
        ("return s.sigma**2 -", "return t.sigma**2 -"),
    ],
    ("variance", VARIANCE, "large"): [
        ("* (s.sigma > 0)", ""),
        ("t.alpha / s.alpha * s.sigma", "s.sigma"),
        ("t.sigma**2 - (", "t.sigma**2 + ("),
    ],
    ("variance", VARIANCE, "learned"): [
        ("small(t, s) ** (1 - mix) * large(t, s) ** mix", "small(t, s) ** mix * large(t, s) ** (1 - mix)"),
        ("small(t, s) ** (1 - mix) * large(t, s) ** mix", "small(t, s) * (1 - mix) + large(t, s) * mix"),
        ("0.0 if s.sigma == 0 else ", "t.sigma if s.sigma == 0 else "),
    ],
    ("variance", VARIANCE, "log_variance"): [
        ("clamp(min=2)", "clamp(min=1)"),
        ("schedule[index - 1], index", "schedule[index], index"),
        ("(high - low)", "(low - high)"),
        ("(t.alpha / s.alpha * s.sigma)", "(t.alpha * s.sigma)"),
        ('"large": 1.0', '"large": 0.9'),
    ],
    ("ddim", SAMPLERS, "ddim_step"): [
        ("eta * math.sqrt(small(t, s))", "eta * small(t, s)"),
        ("eta * math.sqrt(small(t, s))", "math.sqrt(small(t, s))"),
        ("eta * math.sqrt(small(t, s))", "eta**2 * math.sqrt(small(t, s))"),
        ("prediction.x0, t, s,", "prediction.x0, s, t,"),
        ("prediction.x0, t, s,", "prediction.x0, t, t,"),
        ("- std**2", "- std"),
        ("- std**2", ""),
        ("s.sigma**2 -", "t.sigma**2 -"),
        ("alpha=std", "alpha=-std"),
        ("alpha=std", "alpha=eta * std"),
        ("if std > 0 else mean", "if std > 0.1 else mean"),
    ],
    ("euler", SAMPLERS, "euler_step"): [
        ("s, s.sigma)", "s, t.sigma)"),
        ("s, s.sigma)", "s, s.sigma**2)"),
        ("s, s.sigma)", "s, -s.sigma)"),
        ("s, s.sigma)", "s, s.alpha)"),
        ("s, s.sigma)", "s, 0.0)"),
        ("s, s.sigma)", "s, 1.01 * s.sigma)"),
        ("x0, t, s,", "x0, s, t,"),
        ("x0, t, s,", "x0, t, t,"),
        ("(x, prediction.x0", "(prediction.x0, x"),
        ("prediction.x0,", "prediction.eps,"),
    ],
    ("euler", SAMPLERS, "_towards"): [
        ("noise / t.sigma", "noise / s.sigma if s.sigma else 0.0"),
        ("noise / t.sigma", "noise"),
        ("s.alpha - noise", "s.alpha + noise"),
        ("s.alpha - noise", "t.alpha - noise"),
        ("* t.alpha / t.sigma, x0", "/ t.sigma, x0"),
    ],
    ("heun", SAMPLERS, "heun_step"): [
        ("(start_eps + prediction.eps) / 2", "prediction.eps"),
        ("(start_eps + prediction.eps) / 2", "start_eps"),
        ("(start_eps + prediction.eps) / 2", "(start_eps + prediction.eps)"),
        ("(start_eps + prediction.eps) / 2", "(2 * start_eps + prediction.eps) / 3"),
        ("_move(start_x,", "_move(x,"),
        ("/ 2, start, s)", "/ 2, t, s)"),
        ("/ 2, start, s)", "/ 2, s, start)"),
        ("x if start.alpha == 0 else ", ""),
        ("x if start.alpha == 0 else ", "x if start.alpha < 0.5 else "),
        ('memory["start"] = x, prediction.eps, t', 'memory["start"] = x, prediction.x0, t'),
        ('memory["start"] = x, prediction.eps, t', 'memory.setdefault("start", (x, prediction.eps, t))'),
    ],
    ("heun", SAMPLERS, "_move"): [
        ("combine(s.alpha / t.alpha,", "combine(t.alpha / s.alpha,"),
        ("s.sigma - s", "s.sigma + s"),
        ("* t.sigma, eps", "* s.sigma, eps"),
        ("s.sigma - s", "t.sigma - s"),
    ],
    ("ab2", SAMPLERS, "ab2_step"): [
        ("(2 * (r_t - r_before))", "(r_t - r_before)"),
        ("(2 * (r_t - r_before))", "(2 * (r_s - r_before))"),
        ("(2 * (r_t - r_before))", "(2 * (r_s - r_t))"),
        ("eps + (r_s", "eps - (r_s"),
        ("(eps - before[0])", "eps"),
        ("(eps, t) if t.alpha > 0 else None", "(eps, t)"),
        ("= (eps, t) if", "= (eps, s) if"),
        ("= (eps, t) if", "= before or (eps, t) if"),
        ("level.sigma / level.alpha", "level.sigma"),
        ("_move(x, slope, t, s)", "_move(x, eps, t, s)"),
        ("(eps - before[0])", "(before[0] - prediction.x0)"),
    ],
    ("dpmpp_2m", SAMPLERS, "dpmpp_2m_step"): [
        ("h / (2 * before[1])", "h / before[1]"),
        ("h / (2 * before[1])", "before[1] / (2 * h)"),
        ("x0 + h /", "x0 - h /"),
        ("and s.sigma > 0", ""),
        ("before is not None and s.sigma > 0", "False"),
        ('memory["before"] = prediction.x0, h', 'memory.setdefault("before", (prediction.x0, h))'),
        ("s.sigma * t.alpha / (s.alpha * t.sigma)", "s.sigma / t.sigma"),
        ("s.sigma / t.sigma * shrink", "s.alpha / t.alpha * shrink"),
        ("s.alpha * (1 - shrink", "t.alpha * (1 - shrink"),
        ("if shrink > 0 else math.inf", "if shrink > 0 else 0.0"),
        ("h = -math.log(shrink) if", "h = 1 - shrink if"),
    ],
    ("dpmpp_2m_sde", SAMPLERS, "dpmpp_2m_step"): [
        ("* shrink**eta, x", ", x"),
        ("shrink**eta, x", "shrink ** (2 * eta), x"),
        ("shrink ** (1 + eta)", "shrink"),
        ("shrink ** (1 + eta)", "shrink ** (1 + 2 * eta)"),
        ("shrink ** (2 * eta)", "shrink**eta"),
        ("s.sigma * math.sqrt(1", "t.sigma * math.sqrt(1"),
        ("math.sqrt(1 - shrink ** (2 * eta))", "(1 - shrink ** (2 * eta))"),
        ("std = s.sigma * math.sqrt(1", "std = eta * math.sqrt(1"),
        ("alpha=std", "alpha=-std"),
        ("if std > 0 else mean", "if std > 0.1 else mean"),
    ],
    ("driver", SAMPLERS, "sample"): [
        ("memory.clear()", "pass"),
        ("if s.sigma > t.sigma:", "if s.sigma >= t.sigma:"),
        ("denoiser(x, t)", "denoiser(x, s)"),
        ("prediction, t, s, noise", "prediction, s, t, noise"),
        ("Frame(position, x, prediction.x0)", "Frame(position, x, x + 1)"),
        ("noise(), t, s)", "0 * x, t, s)"),
        ("grid[1:].tolist()", "grid[:-1].tolist()"),
    ],
    ("inversion", EDITING, "invert"): [("if eta > 0:", "if eta > 1:")],
    ("inversion", EDITING, "_climb"): [
        ("t if t.sigma > 0 else schedule[1]", "schedule[1]"),
        ("t if t.sigma > 0 else schedule[1]", "s"),
        ("found.x0 if t.sigma > 0 else x", "found.x0"),
        ("s.sigma, found.eps", "-s.sigma, found.eps"),
        ("combine(s.alpha,", "combine(t.alpha,"),
        ("s.sigma, found.eps", "t.sigma, found.eps"),
        ("grid[::-1].tolist()", "grid.tolist()"),
    ],
    ("inpainting", EDITING, "inpainting"): [
        ("noise(), s)", "noise(), t)"),
        ("add_noise(image, noise(), s)", "image"),
        ("mask.bool()", "~mask.bool()"),
        ("noise(), s), filled", "fresh(), s), filled"),
        ("m not in (1, n)", "m != n"),
        ("if mask.ndim != 4 or", "if"),
    ],
    ("jumps", GRID, "jumped"): [
        ("resamples - 1)", "resamples)"),
        ("range(steps - 1,", "range(steps,"),
        ("range(steps - 1,", "range(steps - 2,"),
        ("jump - 1, -jump)", "jump, -jump)"),
        ("jump - 1, -jump)", "jump - 1, -1)"),
        ("left[index] -= 1", "left.clear()"),
        ("index += -jump", "index += 1 - jump"),
        ("jump >= steps", "jump > steps"),
        ("jump < 1 or", "jump < 0 or"),
        ("resamples < 1", "resamples < 0"),
        ("resamples > 1 and", ""),
    ],
    ("image to image", GRID, "from_level"): [
        (" / 2", ""),
        (" / 2", " / 3"),
        ("rest[-1] < (", "rest[-1] <= ("),
        ("grid[grid <= position]", "grid[grid < position]"),
        ("np.append(position, np", "(np"),
        ("(rest[-1] if near else position)", "position"),
        (", position, grid)", ", grid, grid)"),
        ("np.append(True, ~waits)", "np.append(True, np.diff(visits) != 0)"),
        ("np.append(True, ~waits)", "np.append(True, waits | ~waits)"),
        ("len(rest) > 1", "len(rest) > 2"),
    ],
    ("image to image", GRID, "from_strength"): [
        ("strength * schedule.steps", "strength * (schedule.steps - 1)"),
        ("strength * schedule.steps", "strength * grid[0]"),
        ("round(", "int("),
        ("float(strength > 0)", "1.0"),
        ("float(strength > 0)", "0.0"),
        ("<= 1:", "<= 2:"),
        ("not 0 <=", "not -1 <="),
    ],
    ("image to image", EDITING, "_from_image"): [
        ("schedule[float(grid[0])]", "schedule[schedule.steps]"),
        ("schedule[float(grid[0])]", "schedule[float(grid[1])]"),
        ("yield Frame(0.0, x0, x0)", "yield Frame(0.0, x0.clone() + 1e-9, x0)"),
        ("len(grid) == 1", "len(grid) <= 2"),
        ("noise(), schedule", "0 * x0, schedule"),
    ],
    ("slerp", MORPH, "slerp"): [
        ("2 * torch.atan2", "torch.atan2"),
        ("_norm(u - v), _norm(u + v)", "_norm(u + v), _norm(u - v)"),
        ("_norm(u - v), _norm(u + v)", "_norm(a - b), _norm(a + b)"),
        ("((1 - f) * angle).sin()", "(f * angle).cos()"),
        ("((1 - f) * angle).sin() / sine", "((1 - f) * angle).sin()"),
        ("(f * angle).sin() / sine", "(f * angle).sin()"),
        ("torch.where(straight, 1 - f,", "torch.where(straight, 1.0,"),
        ("torch.where(straight, f,", "torch.where(straight, 0.0,"),
        ("straight = (angle.sin() < PARALLEL)", "straight = (angle.sin() < 0.1)"),
        ("straight = (angle.sin() < PARALLEL)", "straight = (angle.sin() < 1e-20)"),
        (" | (norm_a == 0)", ""),
        (" | (norm_b == 0)", ""),
        ("_exact_at_ends(a, b, f, first * a + second * b)", "first * a + second * b"),
        ("first * a + second * b", "first * u + second * v"),
        ("a / norm_a", "a / norm_b"),
    ],
    ("slerp", MORPH, "_norm"): [("(1, 2, 3)", "(0, 1, 2, 3)"), ("(1, 2, 3)", "(1, 2)")],
    ("slerp", MORPH, "_exact_at_ends"): [
        ("f == 0, a,", "f == 1, a,"),
        ("f == 0, a,", "f < 0, a,"),
        ("f == 1, b,", "f == 2, b,"),
        ("f == 1, b,", "f > 0.7, b,"),
    ],
    ("variations", MORPH, "vary"): [
        ("math.pi / 2", "math.pi"),
        ("angle.cos()", "(1 - f)"),
        ("angle.cos()", "angle.sin()"),
        ("angle.sin()", "f.sqrt()"),
        ("angle.sin()", "-angle.sin()"),
        ("f <= 1", "f <= 2"),
        ("f >= 0", "f >= -1"),
        ("if len(wrong)", "if len(wrong) == len(f)"),
        ("_exact_at_ends(latent, noise, f, angle", "(angle"),
    ],
    ("variations", MORPH, "encode"): [
        ("x0 - decoded", "decoded - x0"),
        ("x0 - decoded", "0 * x0"),
        ("(x0, latent,", "(decoded, latent,"),
    ],
    ("variations", MORPH, "variations"): [
        ("vary(encoded.residual, torch.zeros_like(noise), amount)", "encoded.residual"),
        ("vary(encoded.residual, torch.zeros_like(noise), amount)", "0 * encoded.residual"),
        ("vary(encoded.residual, torch.zeros_like(noise), amount)", "encoded.residual * (1 - f)"),
        ("f == 0,", "f == 1,"),
        ("f == 0,", "f > 1,"),
    ],
    ("interpolation", MORPH, "interpolate"): [
        ("torch.where(f == 0, a.image, b.image)", "a.image"),
        ("torch.where(f == 0, a.image, b.image)", "torch.where(f == 0, b.image, a.image)"),
        ("torch.lerp(a.residual, b.residual, f)", "torch.lerp(b.residual, a.residual, f)"),
        ("torch.lerp(a.residual, b.residual, f)", "a.residual"),
        ("torch.lerp(a.residual, b.residual, f)", "slerp(a.residual, b.residual, f)"),
        ("slerp(a.latent, b.latent, fractions)", "torch.lerp(a.latent, b.latent, f)"),
        ("slerp(a.latent, b.latent, fractions)", "slerp(b.latent, a.latent, fractions)"),
        ("(f == 0) | (f == 1), ends", "f == 0, ends"),
        ("(f == 0) | (f == 1), ends", "f == 1, ends"),
        ("(f == 0) | (f == 1), ends", "f <= 1, ends"),
    ],
    ("interpolation", MORPH, "_decode"): [
        ("schedule[position].alpha", "1.0"),
        ("schedule[position].alpha", "schedule[position].sigma"),
        ("combine(1.0, x,", "combine(1.0, x0,"),
        ("x0 + residual", "x0"),
        ("if position == 0 else", "if position > 0 else"),
        ("torch.where(known, image, shown)", "shown"),
    ],
    ("noise", SCHEDULE, "add_more_noise"): [
        ("s.alpha / t.alpha", "t.alpha / s.alpha"),
        ("(scale * t.sigma) ** 2", "t.sigma**2"),
        ("s.sigma**2 - (", "s.sigma**2 + ("),
    ],
    ("grid", GRID, "leading"): [("1 + (", "("), ("[::-1]", ""), ("// steps", "/ steps")],
    ("grid", GRID, "trailing"): [("schedule.steps - np", "schedule.steps - 1 - np"), ("arange(steps)", "arange(1, steps + 1)")],
    ("grid", GRID, "linspace"): [("schedule.steps, 1,", "schedule.steps - 1, 1,"), ("schedule.steps, 1,", "schedule.steps, 0,")],
    ("grid", GRID, "quadratic"): [("** 2", "** 3"), ("1, 0, steps", "1, 0.1, steps"), ("1 + (", "2 + (")],
    ("grid", GRID, "log_snr"): [("np.linspace(*_log_ratio_range(schedule), steps)", "schedule.log_ratio[::-1][:steps]")],
    ("grid", GRID, "karras"): [
        ("ratio / 7", "ratio / 5"),
        ("-7 * np.log", "-5 * np.log"),
        ("first, last, steps", "first, 1, steps"),
    ],
    ("grid", GRID, "_log_ratio_range"): [
        ("[np.isfinite(schedule.log_ratio)]", ""),
        ("schedule.log_ratio[0]", "schedule.log_ratio[1]"),
    ],
    ("grid", GRID, "_by_log_ratio"): [("positions[0] = schedule.steps", "pass")],
    ("grid", GRID, "make_grid"): [
        ("1 <= steps", "0 <= steps"),
        ("<= schedule.steps:", "< schedule.steps:"),
        (", 0.0)", ", 1.0)"),
    ],
    ("grid", GRID, "churned"): [
        ("churn / (len(grid) - 1)", "churn / len(grid)"),
        ("math.log1p(factor)", "factor"),
        ("min(churn / (len(grid) - 1), MAX_CHURN)", "churn / (len(grid) - 1)"),
        ("climbed > position", "climbed >= position"),
        ("if level.alpha > 0 else -math.inf", ""),
    ],
    ("grid", GRID, "corrected"): [("0 < position < before", "position < before"), ("0 < position < before", "0 < position")],
    ("grid", GRID, "evaluations"): [("<= 0", "< 0")],
    ("levels", SCHEDULE, "NoiseSchedule"): [
        ("> MAX_FINAL_ALPHA_BAR and not", "> 0.5 and not"),
        ("padded[-1] >= 0", "True"),
        ("- 1.0).clamp(min=0)", ").clamp(min=0)"),
        ("(1 - padded).sqrt()", "(1 - padded)"),
        ("return Level(float(index) - 1,", "return Level(float(index),"),
        ("np.log(self._table[1, 1:]) - np", "2 * np.log(self._table[1, 1:]) - np"),
        ("np.interp(-log_ratio,", "np.interp(-2 * log_ratio,"),
        ("np.arange(1, self.steps + 1), self", "np.arange(self.steps), self"),
    ],
    ("noise", SCHEDULE, "combine"): [
        ("if a == 1", "if a != 1"),
        ("alpha=b", "alpha=-b"),
        ("return a * x + b * y", "return a * x - b * y"),
    ],
    ("linear", SCHEDULE, "linear"): [
        ("lambda u: 1e-4", "lambda u: 2e-4"),
        ("(0.02 - 1e-4)", "0.02"),
        ("(0.02 -", "(0.021 -"),
        ("(0.02 -", "(0.012 -"),
        ("* u", "* u**2"),
        ("* u", "* u.sqrt()"),
        ("lambda u: 1e-4 +", "lambda u: 0.02 -"),
        ("lambda u: 1e-4", "lambda u: 1e-5"),
        ("- 1e-4)", "+ 1e-4)"),
        ("_from_betas(steps,", "_from_betas(steps + 1,"),
    ],
    ("linear", SCHEDULE, "_from_betas"): [
        ("* 1000 / steps", ""),
        ("* 1000 / steps", "* 1024 / steps"),
        ("1 - beta.clamp(max=MAX_BETA)", "1 - beta.clamp(max=MAX_BETA) / 2"),
        (".clamp(max=MAX_BETA)", ""),
        ("torch.cumprod(1 - beta.clamp(max=MAX_BETA), 0)", "torch.exp(-torch.cumsum(beta, 0))"),
        ("linspace(0, 1, steps", "linspace(1, 0, steps"),
    ],
    ("scaled_linear", SCHEDULE, "scaled_linear"): [
        ("(8.5e-4**0.5 +", "(8e-4**0.5 +"),
        ("(0.012**0.5", "(0.02**0.5"),
        ("* u) ** 2", "* u)"),
        ("* u) ** 2", "* u) ** 3"),
        ("- 8.5e-4**0.5) * u", ") * u"),
        ("* u) ** 2", "* u**2) ** 2"),
        ("8.5e-4**0.5 + (0.012**0.5 - 8.5e-4**0.5) * u", "0.012**0.5 + (8.5e-4**0.5 - 0.012**0.5) * u"),
        ("(0.012**0.5", "(0.012"),
        ("(8.5e-4**0.5 + (0.012**0.5 - 8.5e-4**0.5) * u) ** 2", "8.5e-4 + (0.012 - 8.5e-4) * u"),
        ("_from_betas(steps,", "_from_betas(steps + 1,"),
    ],
    ("quadratic", SCHEDULE, "quadratic"): [
        ("(1e-4**0.5 +", "(2e-4**0.5 +"),
        ("(0.02**0.5", "(0.012**0.5"),
        ("* u) ** 2", "* u)"),
        ("* u) ** 2", "* u) ** 3"),
        ("- 1e-4**0.5) * u", ") * u"),
        ("* u) ** 2", "* u**2) ** 2"),
        ("1e-4**0.5 + (0.02**0.5 - 1e-4**0.5) * u", "0.02**0.5 + (1e-4**0.5 - 0.02**0.5) * u"),
        ("(0.02**0.5", "(0.02"),
        ("(1e-4**0.5 + (0.02**0.5 - 1e-4**0.5) * u) ** 2", "1e-4 + (0.02 - 1e-4) * u"),
        ("_from_betas(steps,", "_from_betas(steps + 1,"),
    ],
    ("cosine", SCHEDULE, "cosine"): [
        ("torch.cos(", "torch.sin("),
        (".square()", ""),
        ("(u + s)", "u"),
        ("/ (1 + s)", ""),
        ("* math.pi / 2", "* math.pi / 2.1"),
        ("* math.pi / 2", "* math.pi / 1.9"),
        (", max_beta)", ", MAX_BETA)"),
        ("s: float = 0.008", "s: float = 0.08"),
        ("max_beta: float = MAX_BETA", "max_beta: float = 0.9"),
        ("_from_curve(steps,", "_from_curve(steps + 1,"),
    ],
    ("cosine", SCHEDULE, "_from_curve"): [
        ("clamp(max=max_beta)", "clamp(max=0.99)"),
        ("f[1:] / f[:-1]", "f[1:]"),
        (") / steps)", ") / (steps + 1))"),
        ("arange(steps + 1,", "arange(1, steps + 2,"),
    ],
    ("sigmoid", SCHEDULE, "sigmoid"): [
        ("start: float = -3.0", "start: float = 3.0"),
        ("tensor(end / tau", "tensor(-end / tau"),
        ("tensor(end / tau", "tensor(end"),
        ("last - torch", "1 - torch"),
        ("torch.sigmoid((", "torch.tanh(("),
        ("(end - start) * u", "end * u"),
        ("* u) / tau)", "* u))"),
        ("(start + (end", "(0 * start + (end"),
        ("MAX_BETA", "0.9"),
        ("_from_curve(steps,", "_from_curve(steps + 1,"),
    ],
    ("edm", SCHEDULE, "edm"): [
        ("sigma_min: float = 0.002", "sigma_min: float = 0.02"),
        ("sigma_max: float = 80.0", "sigma_max: float = 8.0"),
        ("rho: float = 7.0", "rho: float = 5.0"),
        ("sigma_min ** (1 / rho)", "sigma_min"),
        ("sigma_max ** (1 / rho)", "sigma_max ** (1 / 7)"),
        (") ** rho", ") ** 7"),
        ("1 / (1 + sigma.square())", "1 / (1 + sigma)"),
        ("1 / (1 + sigma.square())", "1 / (1 + sigma).square()"),
        ("1 / (1 + sigma.square())", "1 / sigma.square()"),
        ("*ends, steps,", "*ends, steps + 1,"),
    ],
    ("zero_terminal_snr", SCHEDULE, "rescale_to_zero_terminal_snr"): [
        ("alpha_bar.sqrt()", "alpha_bar"),
        ("(alpha - alpha[-1])", "(alpha - alpha[-2])"),
        ("(alpha - alpha[-1])", "alpha"),
        ("* alpha[0] /", "/"),
        ("* alpha[0] /", "* alpha[1] /"),
        ("(alpha[0] - alpha[-1])", "(alpha[0] - alpha[-2])"),
        ("(alpha[0] - alpha[-1])", "alpha[0]"),
        (").square()", ")"),
        ("alpha[0] / (", "alpha[0] * ("),
        ("(alpha - alpha[-1])", "(alpha + alpha[-1])"),
    ],
    ("prediction", ROWS, "solve"): [
        ("combine(b / det", "combine((1 - b) / det"),
        ("-like.sigma / det", "like.sigma / det"),
        ("-like.sigma / det", "-like.alpha / det"),
        ("determinant(name, like)", "determinant(name, like).abs()"),
        ("(spread + 1) / 2", "spread"),
        ("output, spread = output.chunk", "spread, output = output.chunk"),
    ],
    ("prediction", ROWS, "Prediction"): [
        ("1 / level.sigma,", "1 / level.alpha,"),
        ("-level.alpha / level.sigma", "level.alpha / level.sigma"),
        ("-level.alpha / level.sigma", "-level.alpha"),
    ],
    ("denoiser", DENOISER, "guided"): [
        ("conditional if here else unconditional", "unconditional if here else conditional"),
        ("if inside(level, interval) else 1.0", ""),
        ("torch.lerp(untold.x0, told.x0, here)", "torch.lerp(told.x0, untold.x0, here)"),
        ("torch.lerp(untold.x0, told.x0, here)", "here * told.x0"),
        ("told._replace", "untold._replace"),
    ],
    ("denoiser", DENOISER, "dynamic"): [
        (".clamp(min=1)", ""),
        ("/ limit", ""),
        ("x0.abs().flatten(1)", "x0.flatten(1)"),
        ("quantile, dim=1)", "1.0, dim=1)"),
    ],
    ("denoiser", DENOISER, "thresholded"): [
        ("limit(found.x0, quantile)", "found.x0"),
        ("x0=limit(found.x0", "x0=-limit(found.x0"),
    ],
    ("loss", LOSS, "output_weight"): [("level.sigma / det", "level.alpha / det"), ("** 2", "")],
    ("loss", LOSS, "min_snr"): [("max=gamma", "max=5.0"), ("max=gamma", "min=gamma"), ("= 5.0", "= 4.0")],
    ("loss", LOSS, "p2"): [("(1 + snr) ** gamma", "(1 + snr)"), ("snr / (", "1 / ("), ("= 1.0", "= 0.5")],
    ("loss", LOSS, "diffusion_loss"): [
        ("error * output_weight", "error + output_weight"),
        ("level.t.to", "index.to"),
        (".square().flatten(1).mean(1)", ".abs().flatten(1).mean(1)"),
    ],
    ("loss", LOSS, "_bound_loss"): [("mean.detach()", "mean"), ("* schedule.steps *", "*"), (".clamp(-1, 1)", "")],
    ("levels drawn", LEVELS, "Uniform"): [
        ("randint(1, self.steps + 1,", "randint(0, self.steps,"),
        ("self.steps + 1,", "self.steps,"),
    ],
    ("levels drawn", LEVELS, "Stratified"): [
        (") % 1", ") % 0.9"),
        (".long().clamp", ".round().long().clamp"),
        ("torch.rand((), device=self.device) + ", ""),
    ],
    ("levels drawn", LEVELS, "Importance"): [
        ("self.square.sqrt()", "self.square"),
        (">= self.WARMUP", "> self.WARMUP"),
        ("1 / (self.steps * p[index])", "torch.ones_like(p[index])"),
        ("index[:, None] - 1 ==", "index[:, None] % self.steps =="),
        ("count.clamp(min=1)", "len(index)"),
        ("(1 - self.UNIFORM) * root", "root"),
        ("return index + 1,", "return index,"),
    ],
    ("bound", BOUND, "_kl"): [
        ("(1 - t.snr / s.snr)", "1"),
        ("0.5 * (log_p", "(log_p"),
        ("log_q - log_p)", "log_p - log_q)"),
        ("torch.exp(-log_p)", "torch.exp(-log_q)"),
        ("torch.expm1", "torch.exp"),
    ],
    ("bound", BOUND, "_decoder"): [
        ("-0.5 * log_variance", "-log_variance"),
        ("(HALF_BIN - far)", "(2 * HALF_BIN - far)"),
        ("-scale * (HALF_BIN + far)", "-scale * (HALF_BIN - far)"),
        ("scale * (HALF_BIN - error)", "scale * (HALF_BIN + error)"),
        ("x0 < HALF_BIN - 1", "x0 < -2"),
        ("x0 > 1 - HALF_BIN", "x0 > 2"),
        ("upper + torch", "torch"),
    ],
    ("loss", LOSS, "check_weight"): [("== 0:", "< 0:")],
    ("likelihood", LIKELIHOOD, "likelihood"): [
        ("* ((total - 1) / strata)).long()", "* (total / strata)).long()"),
        ("sum(1) * ((total - 1) / strata)", "sum(1)"),
        ("= 2 + (", "= 1 + ("),
        ("prior + steps + decoder", "prior + steps"),
        ("terms[name][:, 1:]", "terms[name][:, :-1]"),
        ("/ len(images) ** 0.5", ""),
    ],
    ("settings", SETTINGS, "Sampling"): [
        ("evaluations(grid) + doubled", "evaluations(grid)"),
        ("self.guidance > 0 or", "True or"),
        ("np.diff(grid) <= 0", "np.diff(grid) < 0"),
    ],
    ("settings", SETTINGS, "SampleDDIM"): [
        ("sampler.stochastic or ", ""),
        ("or self.churn > 0)", ")"),
        ("self.eta > 0 or", "False or"),
        ("and sampler.multistep", "and False"),
    ],
    ("noise", NOISE, "ImageNoise"): [
        ("first + k)", "k)"),
        ("self.used += 1", "self.used += 2"),
        ("self.block[self.used - 1]", "self.block[0]"),
        ("min(draws - 1,", "min((draws - 1) * shape[0],"),
    ],
    ("captions", CAPTIONS, "split_words"): [
        (".lower()", ""),
        ('unicodedata.normalize("NFKC", text)', "text"),
        ("[^\\W_]+", "[a-z]+"),
    ],
    ("captions", CAPTIONS, "names_of"): [
        ("[,/]", "[,]"),
        ("[,/]", "[/]"),
        ("[class_name, DIGIT", "[DIGIT"),
        ("range(10)", "range(20)"),
    ],
    ("captions", CAPTIONS, "captions_of"): [
        ("UNSEEN_DIGIT if unseen else DIGIT_TEMPLATES", "DIGIT_TEMPLATES"),
        ("UNSEEN if unseen else TEMPLATES", "TEMPLATES"),
        ("for template in templates for name in names", "for name in names for template in templates"),
    ],
    ("captions", CAPTIONS, "Vocabulary"): [
        ("START + 1 + k", "START + k"),
        ("sorted({word", "list({word"),
        ("[START, *", "[*"),
        (
            "torch.full((len(rows), max(map(len, rows), default=1)), PADDING)",
            "torch.ones((len(rows), max(map(len, rows), default=1))).long()",
        ),
        ("default=1", "default=0"),
        ("> self.longest:", ">= self.longest:"),
        ("_owners(class_names)))", "map(split_words, captions_of(class_names[0]))))"),
        ("text.strip() and not words", "not words"),
        ("text.strip() and not words", "False"),
        ("n=1)", "n=1, cutoff=0.0)"),
    ],
    ("captions", CAPTIONS, "_owners"): [
        (", *captions_of(name, unseen=True))", ",)"),
        ("tuple(split_words(caption))", "caption"),
        ("if other != label", "if False"),
    ],
    ("captions", CAPTIONS, "caption_table"): [
        ("k % len(of)", "min(k, len(of) - 1)"),
        ("captions_of(name, unseen)", "captions_of(name)"),
    ],
    ("text", CONTENT, "TextContent"): [
        ("src_key_padding_mask=labels == PADDING", "src_key_padding_mask=None"),
        ("read[:, 0]", "read.mean(1)"),
        ("read[:, 0]", "read[:, -1]"),
        ("+ self.places[: labels.shape[1]]", ""),
        ("return embedding + self.out", "return self.out"),
        ("self.captions[labels, 0]", "self.captions[labels, 1]"),
        ("1), START, device", "1), PADDING + 2, device"),
        ("draws * self.captions.shape[1]", "draws * (self.captions.shape[1] - 1)"),
        ("draws * self.captions.shape[1]", "draws * 10"),
        ("dropped[:, None] & words", "dropped[:, None]"),
        ("dropped[:, None] & words", "~dropped[:, None] & words"),
        ("device=labels.device) > 0", "device=labels.device) > 1"),
        ("dropout=0.0", "dropout=0.1"),
        (", persistent=False", ""),
    ],
    ("class", CONTENT, "ClassContent"): [
        ("dropped, self.classes", "dropped, 0"),
        ("(labels)", "(labels.clamp(max=self.classes - 1))"),
        ("labels = torch.full(embedding.shape[:1], self.classes", "labels = torch.full(embedding.shape[:1], 0"),
    ],
    ("known pixels", CONTENT, "known_pixels"): [
        ("images * mask", "images"),
        ("images * mask", "images * (1 - mask)"),
        ("mask.to(images)", "1 - mask.to(images)"),
        ("mask.to(images)", "torch.ones_like(mask)"),
        ("[images * mask, mask.to(images)]", "[mask.to(images), images * mask]"),
    ],
    ("masks", MASKS, "random_masks"): [
        ("~box, box", "box, box"),
        ("~box, box", "~box, ~box"),
        ("dots, ~strokes", "~strokes, ~strokes"),
        ("dots, ~strokes", "dots, strokes"),
        ("dots, ~strokes", "dots, dots"),
        ("0.5 * draw(count, 1, 1)", "draw(count, 1, 1)"),
        ("0.5 * draw(count, 1, 1)", "0.1 * draw(count, 1, 1)"),
        ("len(kinds) * draw(count)", "draw(count)"),
        ("0.1 + 0.4 * draw", "0.1 + 0.1 * draw"),
        ("0.1 + 0.4 * draw", "0.1 + 0.9 * draw"),
        ("(x - middle[1]).abs() < half[1]", "(x - middle[1]).abs() < 1"),
        ("(0.05 + 0.1 * draw", "(0.15 + 0.3 * draw"),
        ("(0.05 + 0.1 * draw", "(0.01 * draw"),
        ("share.clamp(0, 1)", "share"),
        ("generator=generator, ", ""),
        ("/ height", "/ width"),
        (".clamp(min=1e-6)", ".clamp(min=float(share.max()))"),
    ],
    ("told", TRAINER, "Trainer"): [
        ("device=self.device)[mine]\n\n", "device=self.device)[: mine.stop - mine.start]\n\n"),
        ("dropped = chances() < dropout", "dropped = chances() > dropout"),
        ("describe(labels, chances())", "describe(labels, 0 * chances())"),
        ("condition.drop(labels, dropped)", "condition.drop(labels, ~dropped)"),
        ("*x0.shape[2:], self.device)[mine]", "*x0.shape[2:], self.device)[: len(x0)]"),
        ("masks.masked_fill((chances() < dropout)", "masks.masked_fill((chances() < 0)"),
        ("masks.masked_fill((chances() < dropout)", "masks.masked_fill(dropped"),
        ('*x0.shape[2:], torch.device("cpu"), noise)', '*x0.shape[2:], torch.device("cpu"))'),
        ("*([] if known is None else [known])", "*[]"),
    ],
    ("bound", BOUND, "prior_bits"): [("+ last.sigma**2", ""), ("- math.log", "+ math.log"), ("last.alpha * x0", "x0")],
    ("bound", BOUND, "step_bits"): [("index == 1", "index == 2")],
    ("bound", BOUND, "_bits"): [("/ math.log(2)", ""), ("mean(1)", "sum(1)")],
}


NOT_RUN = 100


class Mutation(NamedTuple):
    """In `file`, within the function or class `scope`, `old` becomes `new`."""

    target: str
    file: str
    scope: str
    old: str
    new: str

    def apply(self, source: str) -> str:
        """The source with the mutation. Raises ValueError unless `old` stands once in the scope, outside its docstring."""
        (node,) = [
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == self.scope
        ]
        lines = source.splitlines(keepends=True)
        first, last = node.lineno - 1, node.end_lineno
        if ast.get_docstring(node):
            first_code = node.body[0].end_lineno
            # The signature may be broken too, the docstring not.
            head, body = "".join(lines[first : node.body[0].lineno - 1]), "".join(lines[first_code:last])
            doc = "".join(lines[node.body[0].lineno - 1 : first_code])
        else:
            head, doc, body = "", "", "".join(lines[first:last])
        if (head + body).count(self.old) != 1:
            raise ValueError(f"{self.file}: {self.old!r} stands {(head + body).count(self.old)} times in {self.scope}")
        changed = head.replace(self.old, self.new) + doc + body.replace(self.old, self.new)
        return "".join(lines[:first]) + changed + "".join(lines[last:])


MUTATIONS = [Mutation(*place, *pair) for place, pairs in BREAKS.items() for pair in pairs]


def passes(tests: list[str], mutation: Mutation | None = None) -> bool:
    """Whether tests pass on a copy of the project, with the mutation if there is one. Raises RuntimeError if they do not run."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("ddpm", "stages", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
        for name in ("params.yaml", "dvc.yaml", "pyproject.toml"):
            shutil.copy(ROOT / name, copy)
        if mutation:
            path = copy / mutation.file
            path.write_text(mutation.apply(path.read_text()))
        child = os.fork()
        if child == 0:
            status = NOT_RUN
            with contextlib.suppress(BaseException):
                status = run_tests(copy, tests)
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        # 1: a test failed; 2: a test file could not even be loaded.
        if status not in (0, 1, 2):
            raise RuntimeError(f"pytest ended with {status} for {mutation}")
        return status == 0


def run_tests(folder: Path, names: list[str]) -> int:
    """pytest's exit status in that folder, without a word (but for what the environment variable MUTATIONS_LOG names)."""
    import hypothesis
    import pytest

    # Fewer examples, since a property that breaks breaks for most of them, and no search for the smallest one.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutations", max_examples=25, derandomize=True, database=None, phases=phases)
    hypothesis.settings.load_profile("mutations")
    os.chdir(folder)
    sys.path[:0] = [str(folder), str(folder / "tests")]
    null = os.open(os.environ.get("MUTATIONS_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(null, 1)
    os.dup2(null, 2)
    # What only makes pytest's messages better costs time here.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain", "-o", "addopts=", "-m", "not slow"]
    return int(pytest.main([*options, *(f"tests/{name}" for name in names)]))


def survivors(mutations: list[Mutation], jobs: int) -> list[Mutation]:
    """Those that no test notices. Prints a line for each mutation."""
    # Imported once, before the forks: what the tests load beside the project itself, which differs from copy to copy.
    import hypothesis  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch
    from diffusers import DDPMScheduler, EDMEulerScheduler, HeunDiscreteScheduler, LMSDiscreteScheduler  # noqa: F401
    from diffusers.training_utils import compute_snr  # noqa: F401
    from pydantic import BaseModel  # noqa: F401
    from safetensors.torch import load_file  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()  # spares every child a walk through all that was imported
    every = sorted({name for m in mutations for name in TESTS[m.file]})
    if not passes(every):
        raise RuntimeError("the tests fail without any mutation")
    alive, running = [], {}
    queue = list(enumerate(mutations, 1))
    while queue or running:
        while queue and len(running) < jobs:
            number, mutation = queue.pop(0)
            child = os.fork()
            if child == 0:
                os._exit(1 if passes(TESTS[mutation.file], mutation) else 0)
            running[child] = number, mutation, time.monotonic()
        child, status = os.wait()
        number, mutation, start = running.pop(child)
        verdict = "noticed" if os.waitstatus_to_exitcode(status) == 0 else "SURVIVED"
        if verdict == "SURVIVED":
            alive.append(mutation)
        place = f"{mutation.target}: {mutation.scope}"
        print(f"{number:3}/{len(mutations)} {verdict} after {time.monotonic() - start:.1f} s  {place}: ", end="")
        print(f"{mutation.old!r} -> {mutation.new!r}", flush=True)
    return alive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="what to break: " + ", ".join(dict.fromkeys(m.target for m in MUTATIONS))
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if not options.names or m.target in options.names]
    alive = survivors(chosen, options.jobs)
    print(f"{len(chosen) - len(alive)} of {len(chosen)} mutations noticed")
    sys.exit(bool(alive))


if __name__ == "__main__":
    main()
