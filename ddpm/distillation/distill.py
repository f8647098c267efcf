"""Distills a model into students of fewer and fewer steps, each of them the teacher of the next."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ddpm.core import processes
from ddpm.core.files import InputError, write_json
from ddpm.core.seeds import seed_of
from ddpm.core.weights import save_weights
from ddpm.data.loader import Batches
from ddpm.data.prepared import Split
from ddpm.distillation.settings import Distill
from ddpm.distillation.students import ProgressiveTrainer
from ddpm.networks.checkpoints import CHECKPOINTS, CONFIG
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.plan import make_plan
from ddpm.training.checkpoint import ResumeState
from ddpm.training.loop import Hooks, train
from ddpm.training.settings import Train
from ddpm.training.trainer import Trainer


class Student(NamedTuple):
    """A distilled model.

    steps: the number of DDIM steps that it takes.
    model: the model, with the EMA weights of its training.
    history: rows of the step of its training, and some of loss, validation_loss, gradient_norm and learning_rate.
    """

    steps: int
    model: DiffusionModel
    history: list[dict[str, float]]


def check_teacher(teacher: DiffusionModel, settings: Distill) -> None:
    """Raises InputError for a model that cannot be distilled with these settings."""
    if teacher.learns_variance:
        raise InputError("is not possible with diffusion.learned_variance, since DDIM has no variance", key="distill")
    if teacher.prediction == "eps":
        message = "eps at noise alone does not determine the image that one step must reach; train with prediction v, x0 or flow"
        raise InputError(message, key="distill")
    if settings.teacher_steps > teacher.schedule.steps:
        message = f"{settings.teacher_steps} is more than the model's T = {teacher.schedule.steps} steps"
        raise InputError(message, key="distill.teacher_steps", where="params.yaml")


def distill(
    teacher: DiffusionModel,
    batches: Batches,
    validation: Split,
    settings: Distill,
    training: Train,
    seed: int,
    saved: ResumeState | None,
    fresh: bool = False,
    make_model: Callable[[Trainer], None] = lambda trainer: None,
    **options: Any,
) -> Iterator[Student]:
    """Trains a student for each of `settings.counts` and yields it.

    training: the settings of each student's training (`Distill.train_settings`).
    saved: where process 0 keeps the finished students and the state of an unfinished training; None in other processes.
    fresh: discard what is kept.
    make_model: receives each new trainer, whose `model` it may wrap or compile.
    options: further arguments of `Trainer`.
    """
    state = processes.from_rank0(lambda: saved.load(fresh)) or {"students": {}, "training": None}
    students, unfinished = state["students"], state["training"]
    plan = make_plan(teacher, sampler="ddim", steps=settings.teacher_steps, guidance=settings.guidance)
    source = teacher.network
    for count in settings.counts:
        network = copy.deepcopy(source)
        if count in students:
            weights, history = students[count]
            network.load_state_dict(weights)
        else:
            own = seed_of(seed, "distill", count)
            trainer = ProgressiveTrainer(plan, network, teacher.schedule, teacher.prediction, batches, training, own, **options)
            make_model(trainer)
            if unfinished:
                trainer.load_state_dict(unfinished)
                unfinished = None
            train(trainer, validation, Hooks(checkpoint=_saver(saved, students)), title=f"distill, {count} steps")
            trainer.ema.swap()
            history = trainer.history
            students[count] = {name: value.clone() for name, value in network.state_dict().items()}, history
            if saved:
                saved.save({"students": students, "training": None})
        supports_cfg = teacher.supports_cfg and training.condition_dropout > 0
        student = teacher._replace(network=network.eval(), distilled_steps=count, supports_cfg=supports_cfg)
        yield Student(count, student, history)
        # It has the guidance of its teacher in it.
        plan, source = make_plan(student), network


def _saver(saved: ResumeState | None, students: dict) -> Callable[[Trainer], None]:
    return lambda trainer: saved.save({"students": students, "training": trainer.state_dict()})


def write_student(folder: Path, student: Student, config: dict, settings: Distill, training: Train, seed: int) -> None:
    """Writes a student as a model folder.

    config: that of the teacher.
    """
    own = {"steps": student.steps, "guidance": settings.guidance}
    trained = {**training.model_dump(by_alias=True), "seed": seed}
    write_json(folder / CONFIG, config | {"training": trained, "distillation": own})
    save_weights(folder / CHECKPOINTS["final"], student.model.network.state_dict())
