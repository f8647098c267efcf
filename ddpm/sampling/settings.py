"""The sections `sample_ddpm` and `sample_ddim`."""

from typing import Annotated

from pydantic import Field

from ddpm.core.limits import MAX_CHURN_SETTING, MAX_GUIDANCE, MAX_NOISE_RATIO, MAX_SAMPLES, MAX_TIMESTEPS
from ddpm.core.params import OrWord, Section
from ddpm.diffusion.variance import VarianceName
from ddpm.networks.checkpoints import CheckpointName
from ddpm.sampling.denoiser import ThresholdName
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.plan import SamplingPlan, make_plan
from ddpm.sampling.samplers import SamplerName
from ddpm.sampling.time_grid import SpacingName

Count = Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
Steps = Annotated[int, Field(ge=1, le=MAX_TIMESTEPS)]
Ratio = Annotated[float, Field(ge=0, le=MAX_NOISE_RATIO)]  # sigma / alpha


class Sampling(Section):
    """The keys that both sections share; but for the first two and the last, all keys are options of `make_plan`."""

    samples: Count
    batch_size: Count
    steps: Annotated[Steps | None, OrWord("all")]
    thresholding: ThresholdName
    threshold_quantile: Annotated[float, Field(gt=0, le=1)]
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)]
    guidance_interval: Annotated[Annotated[list[Ratio], Field(min_length=2, max_length=2)] | None, OrWord("all")]
    checkpoint: CheckpointName

    def plan(self, model: DiffusionModel) -> SamplingPlan:
        """Returns the plan for a model. Raises InputError as `make_plan` does."""
        options = {"sampler": "ddpm"} | self.model_dump(exclude={"samples", "batch_size", "checkpoint"})
        return make_plan(model, **options | {"steps": self.steps_of(model.schedule.steps)})

    def steps_of(self, total: int) -> int:
        """Returns the number of denoising steps of a model with T = total."""
        return self.steps or total


class SampleDDPM(Sampling):
    """The `sample_ddpm` section: ancestral sampling in `steps` steps, or in T if these are fewer."""

    variance: VarianceName

    def steps_of(self, total: int) -> int:
        return min(self.steps or total, total)


class SampleDDIM(Sampling):
    """The `sample_ddim` section: DDIM, or another sampler, over all or some of the levels."""

    sampler: SamplerName
    eta: Annotated[float, Field(ge=0, le=1)]
    spacing: SpacingName
    churn: Annotated[float, Field(ge=0, le=MAX_CHURN_SETTING)]
