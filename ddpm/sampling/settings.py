"""The sections `sample_ddpm` and `sample_ddim`, and the plan that each makes for a model: rule, grid and denoiser."""

from functools import partial
from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.core.params import OrWord, Section
from ddpm.diffusion.variance import VarianceName
from ddpm.networks.checkpoints import CheckpointName
from ddpm.sampling.denoiser import Denoiser, ThresholdName, inside, thresholded
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.plan import GridChange, SamplingPlan, build
from ddpm.sampling.samplers import SAMPLERS, SamplerName, StepRule, ancestral_step
from ddpm.sampling.time_grid import SpacingName, evaluations, make_grid

Count = Annotated[int, Field(ge=1)]


Ratio = Annotated[float, Field(ge=0)]


class Sampling(Section):
    """What both sections share."""

    samples: Count
    batch_size: Count
    thresholding: ThresholdName
    threshold_quantile: Annotated[float, Field(gt=0, le=1)]
    guidance: Annotated[float, Field(ge=0)]
    guidance_interval: Annotated[Annotated[list[Ratio], Field(min_length=2, max_length=2)] | None, OrWord("all")]
    checkpoint: CheckpointName

    def _plan(self, model: DiffusionModel, label: str, rule: StepRule, grid: np.ndarray, stochastic: bool) -> SamplingPlan:
        if self.guidance != 1:
            _check_guidance(self.guidance, model)
        interval = tuple(self.guidance_interval) if self.guidance_interval else None
        if interval and self.guidance == 1:
            raise InputError(f"guidance_interval: {list(interval)} has no meaning without guidance; set it to 'all'")
        if interval and interval[0] > interval[1]:
            raise InputError(f"guidance_interval: {list(interval)} ends before it starts; give [lowest, highest] sigma / alpha")

        def denoiser(labels: Tensor | None, known: Tensor | None = None) -> Denoiser:
            told = model.denoiser(labels, self.guidance, interval, known)
            return thresholded(told, self.thresholding, self.threshold_quantile)

        doubled = 0
        if self.guidance not in (0.0, 1.0):
            left = grid[:-1][np.diff(grid) <= 0]
            doubled = sum(inside(model.schedule[position], interval) for position in left)
        # Outside the interval the class is told whatever the scale.
        conditional = self.guidance > 0 or interval is not None
        return SamplingPlan(label, rule, grid, denoiser, evaluations(grid) + doubled, stochastic, conditional)


def _check_guidance(guidance: float, model: DiffusionModel) -> None:
    if not model.network.takes_labels:
        raise InputError(f"guidance: {guidance} needs a model that takes a class or a text (model.conditioning); set it to 1.0")
    if not model.supports_cfg:
        raise InputError(
            f"guidance: {guidance} needs a model that was also trained without its class (train.condition_dropout above 0); "
            "set it to 1.0"
        )


class SampleDDPM(Sampling):
    """The `sample_ddpm` section: ancestral sampling over all T levels."""

    variance: VarianceName

    def plan(self, model: DiffusionModel, steps: int | None = None, change: GridChange | None = None) -> SamplingPlan:
        """Over all levels, or some; `change` is applied to the grid first.

        Raises InputError, beginning with the key, for settings that this model cannot be drawn from with.
        """
        if self.variance == "learned" and not model.learns_variance:
            raise InputError(
                "variance: 'learned' needs a model trained with diffusion.learned_variance: true; use small or large"
            )
        grid = make_grid("trailing", model.schedule, steps or model.schedule.steps)
        grid = change(grid) if change else grid
        return self._plan(model, "DDPM", partial(ancestral_step, variance=self.variance), grid, stochastic=True)


class SampleDDIM(Sampling):
    """The `sample_ddim` section: DDIM, or another fast sampler, over some of the levels."""

    sampler: SamplerName
    steps: Annotated[Annotated[int, Field(ge=1)] | None, OrWord("all")]
    eta: Annotated[float, Field(ge=0, le=1)]
    spacing: SpacingName
    churn: Annotated[float, Field(ge=0)]

    def plan(self, model: DiffusionModel, change: GridChange | None = None) -> SamplingPlan:
        """`change` is applied to the grid first.

        Raises InputError, beginning with the key, for settings that this model cannot be drawn from with.
        """
        sampler = SAMPLERS[self.sampler]
        takes_eta = "eta" in sampler.options
        if self.eta > 0 and not takes_eta:
            raise InputError(f"eta: {self.eta} has no meaning for sampler {self.sampler!r}, only for ddim; set it to 0.0")
        if self.churn > 0 and sampler.multistep:
            raise InputError(
                f"churn: {self.churn} would make sampler {self.sampler!r} forget its last step at every step; use heun, euler or "
                "ddim, or set it to 0.0"
            )
        grid = make_grid(self.spacing, model.schedule, self.steps or model.schedule.steps)
        grid = change(grid) if change else grid
        rule, grid = build(sampler, grid, model, self.churn, **({"eta": self.eta} if takes_eta else {}))
        return self._plan(model, sampler.label, rule, grid, sampler.stochastic or self.eta > 0 or self.churn > 0)
