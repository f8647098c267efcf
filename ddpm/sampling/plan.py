"""What is asked of a model: the sampler and its options, classes and texts, and the noise of a seed."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from ddpm.core.files import InputError
from ddpm.core.params import lookup, make
from ddpm.diffusion.variance import VARIANCES
from ddpm.sampling.denoiser import Denoiser
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.names import MAX_GUIDANCE
from ddpm.sampling.samplers import SAMPLERS, Sampler, StepRule, ancestral_step
from ddpm.sampling.settings import SampleDDIM, SampleDDPM
from ddpm.sampling.time_grid import SPACINGS, with_churn, with_corrector

GridChange = Callable[[np.ndarray], np.ndarray]


class SamplingPlan(NamedTuple):
    """How to draw from a model: the step rule, the grid, the denoiser of images that it is told labels and known pixels of (or
    None), network evaluations per image, whether steps draw noise, and whether classes are asked for."""

    label: str
    rule: StepRule
    grid: np.ndarray
    denoiser: Callable[..., Denoiser]
    nfe: int
    stochastic: bool
    conditional: bool = True


def build(
    sampler: Sampler, grid: np.ndarray, model: DiffusionModel, churn: float = 0.0, **options: float
) -> tuple[StepRule, np.ndarray]:
    """The sampler's rule with its options, and the grid as it visits it."""
    if churn > 0:
        grid = with_churn(grid, model.schedule, churn)
    return partial(sampler.step, **options), with_corrector(grid) if sampler.twice else grid


STEPS = 50


CHOICES: dict[str, Sampler] = {"ddpm": Sampler("DDPM", ancestral_step, ("variance",), stochastic=True), **SAMPLERS}


def make_plan(
    model: DiffusionModel,
    change: GridChange | None = None,
    *,
    sampler: str = "ddim",
    steps: int | None = None,
    eta: float = 0.0,
    variance: str = "small",
    spacing: str = "trailing",
    guidance: float = 1.0,
    thresholding: str = "clip",
) -> SamplingPlan:
    """How to draw from a model. steps: None is all T for ddpm, and up to 50 for others; eta is ddim's, variance ddpm's; change:
    what is done to the grid (`with_repaint_jumps`).

    Raises InputError, beginning with the option, for one that is unknown, out of range, or not possible with this model.
    """
    lookup(CHOICES, sampler, "sampler")
    total = model.schedule.steps
    if steps is not None and not 1 <= steps <= total:
        raise InputError(f"steps: {steps} is out of range; this model has T = {total}, so give 1 to {total}")
    if not guidance <= MAX_GUIDANCE:
        raise InputError(f"guidance: {guidance} is out of range; give 0 to {MAX_GUIDANCE:g}")
    lookup(SPACINGS, spacing, "spacing")
    lookup(VARIANCES, variance, "variance")
    common = {
        "samples": 1, "batch_size": 1, "checkpoint": "final", "thresholding": thresholding, "threshold_quantile": 0.995,
        "guidance": float(guidance), "guidance_interval": "all",
    }  # fmt: skip
    if sampler == "ddpm":
        for name, value, usual in (("eta", eta, 0.0), ("spacing", spacing, "trailing")):
            if value != usual:
                raise InputError(f"{name}: {value!r} has no meaning for sampler 'ddpm'; leave it out")
        return make(SampleDDPM, variance=variance, **common).plan(model, steps, change)
    if variance != "small":
        raise InputError(f"variance: {variance!r} has no meaning for sampler {sampler!r}, only for ddpm; leave it out")
    chosen = {"sampler": sampler, "steps": steps or min(STEPS, total), "eta": float(eta), "spacing": spacing, "churn": 0.0}
    return make(SampleDDIM, **chosen, **common).plan(model, change)
