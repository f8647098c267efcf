"""Trainers of students: a student reaches in one DDIM step what its teacher reaches in several. METHODS is their registry."""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.core.params import OneOf
from ddpm.diffusion.schedule import Level, NoiseSchedule, add_noise
from ddpm.diffusion.timestep_sampling import Uniform
from ddpm.sampling.denoiser import Denoiser, network_denoiser, thresholded
from ddpm.sampling.plan import SamplingPlan
from ddpm.sampling.samplers import euler_step, no_noise
from ddpm.training.trainer import Trainer


def one_step_target(x_t: Tensor, x_s: Tensor, t: Level, s: Level) -> tuple[Tensor, Tensor]:
    """Returns (x0, eps), both (B, C, H, W), with which one DDIM step leads from x_t to x_s.

    x_t = alpha_t x0 + sigma_t eps and x_s = alpha_s x0 + sigma_s eps, both given, are a linear system in x0 and eps (Salimans &
    Ho 2022, app. G).

    t, s: levels as `Level.like` gives them; s has less noise than t and may be the clean image.
    """
    ratio = s.sigma / t.sigma
    x0 = (x_s - ratio * x_t) / (s.alpha - ratio * t.alpha)
    return x0, (x_t - t.alpha * x0) / t.sigma


def follow(denoiser: Denoiser, x: Tensor, levels: Sequence[Level]) -> Tensor:
    """Returns where DDIM steps of a denoiser lead from x (B, C, H, W) at the first of the levels, to the last of them."""
    for t, s in pairwise(levels):
        x, _ = euler_step(denoiser, x, t, s, no_noise, {})
    return x


class GridLevels(Uniform):
    """Draws the levels of a grid, each with the same probability.

    grid: positions (n,), whole numbers from 1 to T.
    """

    def __init__(self, grid: Tensor):
        super().__init__(len(grid), grid.device)
        self.grid = grid

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        place, weight = super().draw(count)
        return self.grid[place - 1], weight

    def spread(self, count: int) -> Tensor:
        return self.grid.cpu()[torch.arange(count) % self.steps]


class ProgressiveTrainer(Trainer):
    """Progressive distillation (Salimans & Ho 2022): one step of the student is two steps of the teacher.

    All but the target is as in any training: x_t is a noisy training image, at the levels of the student's steps alone.

    teacher: a plan of DDIM with eta 0 and twice the student's number of steps, whose grid has whole positions.
    """

    def __init__(
        self, teacher: SamplingPlan, steps: int, network: nn.Module, schedule: NoiseSchedule, *others: Any, **options: Any
    ):
        super().__init__(network, schedule, *others, **options)
        self.teacher = teacher
        grid = torch.from_numpy(teacher.grid.astype(np.int64)).to(self.device)
        starts, paths = self.paths(grid, (len(grid) - 1) // steps)
        # Row t holds the positions of the path from t.
        self.path = torch.zeros(schedule.steps + 1, paths.shape[1], dtype=torch.int64, device=self.device)
        self.path[starts] = paths
        self.timesteps = GridLevels(starts)

    def paths(self, grid: Tensor, substeps: int) -> tuple[Tensor, Tensor]:
        """Returns the levels that are trained, (n,), and the levels that a target visits from each, (n, k), the first included.

        grid: positions of the teacher's steps, with 0 at the end. substeps: teacher's steps in a step of the student.
        """
        return grid[:-1:substeps], grid.unfold(0, substeps + 1, substeps)

    def target(self, x_t: Tensor, levels: Sequence[Level], labels: Tensor, known: Tensor | None) -> Tensor:
        """Returns where the student should get from x_t, at the first of the levels, with one step to the last."""
        return follow(self.teacher.denoiser(labels, known), x_t, levels)

    def _losses(self, model: nn.Module, x0: Tensor, labels: Tensor, index: Tensor, eps: Tensor, *others: Tensor | None) -> Tensor:
        with torch.no_grad(), self.autocast():
            x_t = add_noise(x0, eps, self.schedule[index])
            levels = [self.schedule[positions].like(x_t) for positions in self.path[index].unbind(1)]
            x_s = self.target(x_t, levels, labels, *(others[:1] or [None]))
            x0, eps = one_step_target(x_t, x_s, levels[0], levels[-1])
        return super()._losses(model, x0, labels, index, eps, *others)


class TransitiveTrainer(ProgressiveTrainer):
    """Transitive closure time-distillation, TRACT (Berthelot et al. 2023): one step of the teacher, the rest by the student.

    The student learns to step from each level of the teacher's grid to the end of the segment that is one of its own steps. The
    teacher takes one step, and the student's EMA goes on from there. So a student of any number of steps needs one training.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        # A network whose parameters are the EMA's own memory, so that it needs no copy.
        self.self_teacher = copy.deepcopy(self.network).eval().requires_grad_(False)
        average = self.ema.state_dict()
        for name, parameter in self.self_teacher.named_parameters():
            parameter.data = average[name]

    def paths(self, grid: Tensor, substeps: int) -> tuple[Tensor, Tensor]:
        place = torch.arange(len(grid) - 1, device=grid.device)
        ends = (place // substeps + 1) * substeps
        return grid[:-1], torch.stack([grid[:-1], grid[1:], grid[ends]], dim=1)

    def target(self, x_t: Tensor, levels: Sequence[Level], labels: Tensor, known: Tensor | None) -> Tensor:
        t, middle, s = levels
        x = follow(self.teacher.denoiser(labels, known), x_t, [t, middle])
        student = thresholded(network_denoiser(self.self_teacher, self.prediction, labels, known))
        further = follow(student, x, [middle, s])
        # Where the teacher's step ended the segment, there is no further one; to the clean image it would divide by 0.
        return torch.where(middle.sigma == s.sigma, x, further)


class Method(NamedTuple):
    """A way to distill.

    trainer: function (teacher's plan, steps of the student, network, schedule, ...) -> Trainer.
    chained: whether a student is the teacher of the next one, of half the steps; else the first teacher is that of all.
    description: a sentence in Markdown, for the report.
    """

    trainer: Callable[..., Trainer]
    chained: bool
    description: str


METHODS: dict[str, Method] = {
    "progressive": Method(
        ProgressiveTrainer,
        chained=True,
        description="Progressive distillation ([Salimans & Ho 2022](https://arxiv.org/abs/2202.00512)): each student reaches in "
        "one DDIM step what its teacher reaches in two.",
    ),
    "tract": Method(
        TransitiveTrainer,
        chained=False,
        description="Transitive closure time-distillation ([Berthelot et al. 2023](https://arxiv.org/abs/2303.04248)): each "
        "student steps from every level of the teacher to the end of a segment.",
    ),
}
MethodName = Annotated[str, OneOf(METHODS)]
