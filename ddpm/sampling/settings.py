"""The sections `sample_ddpm` and `sample_ddim`."""

from typing import Annotated, Any

from pydantic import Field

from ddpm.core.params import OrWord, Section
from ddpm.diffusion.variance import VarianceName
from ddpm.networks.checkpoints import CheckpointName
from ddpm.sampling.denoiser import ThresholdName
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.names import MAX_GUIDANCE
from ddpm.sampling.plan import SamplingPlan, make_plan
from ddpm.sampling.samplers import SamplerName
from ddpm.sampling.time_grid import SpacingName

Count = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(ge=0)]


class Sampling(Section):
    """The keys that both sections share."""

    samples: Count
    batch_size: Count
    thresholding: ThresholdName
    threshold_quantile: Annotated[float, Field(gt=0, le=1)]
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)]
    guidance_interval: Annotated[Annotated[list[Ratio], Field(min_length=2, max_length=2)] | None, OrWord("all")]
    checkpoint: CheckpointName

    def _shared(self) -> dict[str, Any]:
        return {
            "thresholding": self.thresholding,
            "threshold_quantile": self.threshold_quantile,
            "guidance": self.guidance,
            "guidance_interval": tuple(self.guidance_interval) if self.guidance_interval else None,
        }


class SampleDDPM(Sampling):
    """The `sample_ddpm` section: ancestral sampling over all T levels."""

    variance: VarianceName

    def plan(self, model: DiffusionModel) -> SamplingPlan:
        """Return the plan to draw from a model. Raises InputError as `make_plan` does."""
        return make_plan(model, sampler="ddpm", variance=self.variance, **self._shared())


class SampleDDIM(Sampling):
    """The `sample_ddim` section: DDIM, or another fast sampler, over some of the levels."""

    sampler: SamplerName
    steps: Annotated[Annotated[int, Field(ge=1)] | None, OrWord("all")]
    eta: Annotated[float, Field(ge=0, le=1)]
    spacing: SpacingName
    churn: Annotated[float, Field(ge=0)]

    def plan(self, model: DiffusionModel) -> SamplingPlan:
        """Return the plan to draw from a model. Raises InputError as `make_plan` does."""
        steps = self.steps or model.schedule.steps
        chosen = {"sampler": self.sampler, "steps": steps, "eta": self.eta, "spacing": self.spacing, "churn": self.churn}
        return make_plan(model, **chosen, **self._shared())
