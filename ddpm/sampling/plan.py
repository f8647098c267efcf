"""The sampling plan: what `sample` and `generate` need to generate images with a model."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from typing_extensions import TypedDict

from ddpm.core.files import InputError
from ddpm.core.limits import MAX_CHURN_SETTING, MAX_GUIDANCE
from ddpm.core.params import lookup
from ddpm.diffusion.variance import VARIANCES
from ddpm.sampling.denoiser import THRESHOLDS, Denoiser, inside, thresholded
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.samplers import SAMPLERS, Sampler, StepRule, corrects
from ddpm.sampling.time_grid import make_grid, with_churn

DEFAULT_STEPS = 50


class PlanOptions(TypedDict, total=False):
    """The options of `make_plan`, which explains them, that callers pass on."""

    sampler: str
    steps: int | None
    eta: float
    variance: str
    spacing: str
    churn: float
    guidance: float
    guidance_interval: tuple[float, float] | None
    thresholding: str
    threshold_quantile: float


class SamplingPlan(NamedTuple):
    """How to generate images with a model.

    label: the sampler's name in tables and figures.
    rule: the step rule with its options.
    grid: the positions that it visits (`time_grid`).
    denoiser: function (labels, known=None) -> Denoiser, with guidance and thresholding applied.
    nfe: network evaluations per image.
    stochastic: whether the steps draw noise.
    conditional: whether the network receives labels at all.
    """

    label: str
    rule: StepRule
    grid: np.ndarray
    denoiser: Callable[..., Denoiser]
    nfe: int
    stochastic: bool
    conditional: bool = True


def make_plan(
    model: DiffusionModel,
    *,
    sampler: str = "ddim",
    steps: int | None = None,
    eta: float = 0.0,
    variance: str = "small",
    spacing: str = "trailing",
    churn: float = 0.0,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    thresholding: str = "clip",
    threshold_quantile: float = 0.995,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> SamplingPlan:
    """Returns the plan of a sampler for a model.

    sampler, spacing, thresholding, variance: keys of SAMPLERS, SPACINGS, THRESHOLDS, VARIANCES.
    steps: denoising steps; None is all T for ddpm, 50 (at most T) for the others, and what a distilled model was made for.
    eta: of ddim, 0 (deterministic) to 1 (as noisy as DDPM).
    variance: of ddpm.
    churn: S_churn of `with_churn`.
    guidance: scale of classifier-free guidance; 0 is unconditional, 1 conditional.
    guidance_interval: (lowest, highest) sigma / alpha at which guidance applies; None is everywhere.
    change: function (grid) -> grid, applied before churn, such as RePaint's jumps.

    Raises InputError, whose key is the option, for a value that is unknown, out of range, or not possible with this model.
    """
    chosen, total = lookup(SAMPLERS, sampler, "sampler"), model.schedule.steps
    lookup(VARIANCES, variance, "variance")
    lookup(THRESHOLDS, thresholding, "thresholding")
    limits = {"eta": (eta, 1), "churn": (churn, MAX_CHURN_SETTING), "threshold_quantile": (threshold_quantile, 1)}
    for key, (value, most) in {**limits, "guidance": (guidance, MAX_GUIDANCE)}.items():
        if not isinstance(value, int | float | np.number) or not 0 <= value <= most:
            raise InputError(f"{value!r} is out of range; give 0 to {most:g}", key=key)
    options = _options(sampler, chosen, eta=eta, variance=variance)
    if variance == "learned" and not model.learns_variance:
        raise InputError(
            "'learned' needs a model trained with diffusion.learned_variance: true; use small or large", key="variance"
        )
    if churn > 0 and chosen.multistep:
        raise InputError(
            f"{churn} re-noises before each step, which clears the state of sampler {sampler!r}; use heun, euler or ddim, "
            "or set it to 0.0",
            key="churn",
        )
    _check_guidance(model, guidance, guidance_interval)
    if steps is None:
        steps = model.distilled_steps or (total if sampler == "ddpm" else min(DEFAULT_STEPS, total))
    own = {"sampler": "ddim", "steps": model.distilled_steps, "eta": 0, "spacing": "trailing", "churn": 0}
    given = {"sampler": sampler, "steps": steps, "eta": eta, "spacing": spacing, "churn": churn}
    for key in own if model.distilled_steps else ():
        if given[key] != own[key]:
            raise InputError(f"{given[key]!r} is not {own[key]!r}, for which this model was distilled; leave it out", key=key)
    grid = make_grid(spacing, model.schedule, steps)
    if change:
        grid = change(grid)
    if churn > 0:
        grid = with_churn(grid, model.schedule, churn)

    def denoiser(labels: Tensor | None, known: Tensor | None = None) -> Denoiser:
        return thresholded(model.denoiser(labels, guidance, guidance_interval, known), thresholding, threshold_quantile)

    nfe = _evaluations(chosen, grid, model, guidance, guidance_interval)
    stochastic = chosen.stochastic or eta > 0 or churn > 0
    # Outside the interval the network receives the labels whatever the scale is.
    conditional = guidance > 0 or guidance_interval is not None
    return SamplingPlan(chosen.label, partial(chosen.step, **options), grid, denoiser, nfe, stochastic, conditional)


def _options(name: str, sampler: Sampler, *, eta: float, variance: str) -> dict[str, Any]:
    """Returns the options of a sampler's rule. Raises InputError for one that it does not take."""
    values = {"eta": (eta, 0.0), "variance": (variance, "small")}
    for option, (value, default) in values.items():
        if option not in sampler.options and value != default:
            takers = ", ".join(other for other, row in SAMPLERS.items() if option in row.options)
            raise InputError(
                f"{value!r} has no meaning for sampler {name!r}, only for {takers}; set it to {default!r}", key=option
            )
    return {option: values[option][0] for option in sampler.options}


def _check_guidance(model: DiffusionModel, guidance: float, interval: tuple[float, float] | None) -> None:
    if guidance != 1 and not model.network.takes_labels:
        raise InputError(
            f"{guidance} needs a model that takes a class or a text (model.conditioning); set it to 1.0", key="guidance"
        )
    if guidance != 1 and not model.supports_cfg:
        raise InputError(
            f"{guidance} needs a model that was also trained without its class (train.condition_dropout above 0); set it to 1.0",
            key="guidance",
        )
    if interval and guidance == 1:
        raise InputError(f"{list(interval)} has no meaning without guidance; set it to 'all'", key="guidance_interval")
    if interval and interval[0] > interval[1]:
        raise InputError(f"{list(interval)} ends before it starts; give [lowest, highest] sigma / alpha", key="guidance_interval")


def _evaluations(
    sampler: Sampler, grid: np.ndarray, model: DiffusionModel, guidance: float, interval: tuple[float, float] | None
) -> int:
    """Returns the network evaluations per image; a guided prediction takes two."""
    count = 0
    for start, end in pairwise(grid.tolist()):
        if end < start:
            t, s = model.schedule[start], model.schedule[end]
            for level in (t, s) if sampler.second_order and corrects(t, s) else (t,):
                count += 2 if guidance not in (0.0, 1.0) and inside(level, interval) else 1
    return count
