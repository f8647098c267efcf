"""The trainer of a student, which reaches in one DDIM step what its teacher reaches in two."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.diffusion.schedule import Level, NoiseSchedule, add_noise
from ddpm.diffusion.timestep_sampling import Uniform
from ddpm.sampling.denoiser import Denoiser
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

    teacher: a plan of DDIM with eta 0, an even number of steps, and a grid of whole positions.
    """

    def __init__(self, teacher: SamplingPlan, network: nn.Module, schedule: NoiseSchedule, *others: Any, **options: Any):
        super().__init__(network, schedule, *others, **options)
        self.teacher = teacher
        grid = torch.from_numpy(teacher.grid.astype(np.int64)).to(self.device)
        # Row t holds the positions that the teacher visits from t, one of the student's levels.
        self.path = torch.zeros(schedule.steps + 1, 3, dtype=torch.int64, device=self.device)
        self.path[grid[:-1:2]] = grid.unfold(0, 3, 2)
        self.timesteps = GridLevels(grid[:-1:2])

    def _losses(self, model: nn.Module, x0: Tensor, labels: Tensor, index: Tensor, eps: Tensor, *others: Tensor | None) -> Tensor:
        known = others[0] if others else None
        with torch.no_grad(), self.autocast():
            x_t = add_noise(x0, eps, self.schedule[index])
            levels = [self.schedule[positions].like(x_t) for positions in self.path[index].unbind(1)]
            x_s = follow(self.teacher.denoiser(labels, known), x_t, levels)
            x0, eps = one_step_target(x_t, x_s, levels[0], levels[-1])
        return super()._losses(model, x0, labels, index, eps, *others)
