"""The `train` section."""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from ddpm.core.files import InputError
from ddpm.core.limits import MAX_SAMPLES, MAX_TIMESTEPS
from ddpm.core.params import PARAMS_FILE, OneOf, OrWord, Section
from ddpm.diffusion.loss import LossWeightName
from ddpm.diffusion.timestep_sampling import TimestepSamplerName
from ddpm.networks.checkpoints import CheckpointName
from ddpm.training.optimizers import OPTIMIZERS

Count = Annotated[int, Field(ge=1, le=10**9)]


class LRSchedule(NamedTuple):
    """The learning rate after the warm-up: constant, and then a decay up to the last step.

    decay: function of the progress 0..1 of the decay; its value at 0 is 1.
    decay_steps: function of the settings that gives the number of steps of the decay; None: all steps after the warm-up.
    """

    decay: Callable[[float], float] = lambda progress: 1.0
    decay_steps: Callable[["Train"], int] | None = lambda train: 0


LR_SCHEDULES: dict[str, LRSchedule] = {
    "constant": LRSchedule(),
    # Half a cosine down to 0 (Loshchilov & Hutter 2017).
    "cosine": LRSchedule(lambda progress: 0.5 * (1 + math.cos(math.pi * progress)), None),
    # Warm-up, stable, decay (Hu et al. 2024), with the decay 1 - sqrt of Hägele et al. 2024.
    "wsd": LRSchedule(lambda progress: 1 - math.sqrt(progress), lambda train: train.cooldown_steps),
}
# What `best` may be chosen by, a column of the training's history of which lower is better, and the setting of its interval.
BEST_BY = {"validation_loss": "validate_every", "fid": "score_every"}


class Train(Section):
    """The `train` section; params.yaml explains each entry."""

    steps: Count
    batch_size: Annotated[int, Field(ge=1, le=10**6)]
    gradient_accumulation: Annotated[int, Field(ge=1, le=10**6)]
    optimizer: Annotated[str, OneOf(OPTIMIZERS)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    lr_schedule: Annotated[str, OneOf(LR_SCHEDULES)]
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)]
    cooldown_steps: Count
    weight_decay: Annotated[float, Field(ge=0, lt=1)]
    gradient_clip: Annotated[float, Field(ge=1e-6, le=1e10)]
    max_nonfinite_skips: Annotated[int, Field(ge=0, le=10**6)]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    loss_weight: Annotated[LossWeightName | None, OrWord("auto")]
    loss_gamma: Annotated[Annotated[float, Field(ge=1e-6, le=1e6)] | None, OrWord("auto")]
    timestep_sampling: TimestepSamplerName
    condition_dropout: Annotated[float, Field(ge=0, lt=1)]
    flip: bool
    augment: Annotated[float, Field(ge=0, lt=1)]
    log_every: Count
    validate_every: Count
    preview_every: Count
    checkpoint_every: Count
    snapshot_every: Count
    snapshots: Annotated[int, Field(ge=0, le=1000)]
    score_every: Annotated[int, Field(ge=0, le=10**9)]
    score_samples: Annotated[int, Field(ge=2, le=MAX_SAMPLES)]
    score_steps: Annotated[int, Field(ge=1, le=MAX_TIMESTEPS)]
    best_by: Annotated[str, OneOf(BEST_BY)]
    init: Annotated[Annotated[str, Field(min_length=1)] | None, OrWord("none")]
    init_checkpoint: CheckpointName
    continue_: Annotated[bool, Field(alias="continue")]

    @model_validator(mode="after")
    def _measures_best_by(self) -> "Train":
        if not getattr(self, every := BEST_BY[self.best_by]):
            message = f"{self.best_by!r} is never measured, since train.{every} is 0; set that to a number of steps"
            raise PydanticCustomError("section", "{key}: {message}", {"key": "best_by", "message": message})
        return self

    def learning_rate_at(self, step: int) -> float:
        """Returns the learning rate of step 0, 1, ...: a linear warm-up, then the schedule."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        count = self._decay_steps()
        progress = max(0, step - (self.steps - count)) / max(1, count)
        return self.learning_rate * LR_SCHEDULES[self.lr_schedule].decay(progress)

    def _decay_steps(self) -> int:
        longest, chosen = max(0, self.steps - self.warmup_steps), LR_SCHEDULES[self.lr_schedule].decay_steps
        return longest if chosen is None else min(longest, chosen(self))

    @property
    def shared_steps(self) -> int:
        """How many steps a training of more `steps` has in common with this one; 0 if its learning rate differs from the first.

        The last step is never among them: it is logged, validated and stored whatever the intervals are.
        """
        if LR_SCHEDULES[self.lr_schedule].decay_steps is None:
            return 0
        return min(self.steps - 1, self.steps - self._decay_steps())

    def check_continue(self) -> None:
        """Raises InputError for `continue` with a learning rate that depends on `steps` from the first step."""
        if self.continue_ and LR_SCHEDULES[self.lr_schedule].decay_steps is None:
            names = " or ".join(name for name, schedule in LR_SCHEDULES.items() if schedule.decay_steps)
            message = f"{self.lr_schedule} depends on train.steps from the first step; set {names}, or train.continue to false"
            raise InputError(message, key="train.lr_schedule", where=PARAMS_FILE)

    def snapshot_steps(self, last: int) -> list[int]:
        """Returns the steps up to `last` after which snapshots are taken."""
        return [step for step in range(1, last + 1) if self.snapshot_due(step)]

    def snapshot_due(self, step: int) -> bool:
        """Returns whether a snapshot is taken after step 1, 2, ...: with every `snapshot_every` images, and at the end."""
        crossed = step * self.batch_size // self.snapshot_every > (step - 1) * self.batch_size // self.snapshot_every
        return self.snapshots > 0 and (crossed or step == self.steps)

    def check_share(self, processes: int) -> None:
        """Raises InputError if a batch has fewer images than there are processes times parts."""
        if self.batch_size < processes * self.gradient_accumulation:
            parts = f"{processes} processes with {self.gradient_accumulation} parts each"
            advice = "raise it, or lower train.gradient_accumulation or runtime.processes"
            message = f"{self.batch_size} images cannot be divided among {parts}; {advice}"
            raise InputError(message, key="train.batch_size", where=PARAMS_FILE)
