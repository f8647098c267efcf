"""The section `distill`."""

from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from ddpm.core.files import InputError
from ddpm.core.limits import MAX_GUIDANCE, MAX_TIMESTEPS
from ddpm.core.params import OrWord, Section, make
from ddpm.core.paths import MODEL_DIR
from ddpm.diffusion.loss import LossWeightName
from ddpm.networks.checkpoints import CheckpointName
from ddpm.sampling.settings import Count
from ddpm.training.settings import Train


class Distill(Section):
    """The section `distill`; params.yaml explains each entry."""

    checkpoint: CheckpointName
    teacher_steps: Annotated[int, Field(ge=2, le=MAX_TIMESTEPS)]
    student_steps: Annotated[int, Field(ge=1, le=MAX_TIMESTEPS)]
    iterations: Annotated[int, Field(ge=2, le=10**9)]
    batch_size: Annotated[int, Field(ge=1, le=10**6)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    loss_weight: Annotated[LossWeightName | None, OrWord("auto")]
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)]
    samples: Annotated[Count, Field(ge=2)]

    @model_validator(mode="after")
    def _halving_reaches_the_student(self) -> "Distill":
        if self.counts[-1:] != [self.student_steps]:
            message = f"halving teacher_steps, {self.teacher_steps}, does not lead to {self.student_steps} steps"
            raise PydanticCustomError("section", "{key}: {message}", {"key": "student_steps", "message": message})
        return self

    @property
    def counts(self) -> list[int]:
        """The steps of each student: half the steps of its teacher."""
        counts, steps = [], self.teacher_steps
        while steps % 2 == 0 and steps > self.student_steps:
            steps //= 2
            counts.append(steps)
        return counts

    def train_settings(self, training: dict[str, Any]) -> Train:
        """Returns the settings of the training of each student.

        training: the section `train` of the teacher, as its config.json holds it; optimizer, flips, precision of the log and
        so on are as there. With guidance, no label is dropped, since the student has the guidance in it.

        Raises InputError if it lacks settings, as a model of older code or of diffusers does.
        """
        own = {
            # With `init`, the EMA would remember the teacher, from which a student of few steps has to get away.
            "init": None,
            "init_checkpoint": "final",
            "continue": False,
            "steps": self.iterations,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "ema_decay": self.ema_decay,
            "loss_weight": self.loss_weight,
            "loss_gamma": None,
            "lr_schedule": "cosine",
            "warmup_steps": min(20, self.iterations - 1),
            "timestep_sampling": "uniform",
            "augment": 0.0,
            "snapshots": 0,
            "score_every": 0,
            "best_by": "validation_loss",
            **({} if self.guidance == 1 else {"condition_dropout": 0.0}),
        }
        names = {field.alias or name for name, field in Train.model_fields.items()}
        try:
            return make(Train, **{name: value for name, value in training.items() if name in names} | own)
        except InputError as error:
            raise InputError(f"holds no complete section train ({error}); run `dvc repro train`", key=MODEL_DIR) from None
