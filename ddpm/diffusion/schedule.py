"""Noise schedules: how much of the image is left at every level of noise.

A noisy image is x_t = alpha * x0 + sigma * eps. A schedule is a table of levels 0..T: level 0 is the clean image
(alpha = 1, sigma = 0), level T is noise. alpha_bar of the DDPM paper is alpha ** 2.
"""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ddpm.files import InputError
from ddpm.params import OneOf, Section, lookup

# A schedule whose last level still carries signal trains a network that never sees the pure noise it must start from.
MAX_FINAL_ALPHA_BAR = 1e-2


class Level(NamedTuple):
    """One noise level, or a batch of them: x_t = alpha * x0 + sigma * eps.

    All three are tensors of one shape: () for a level, (B,) for one level per image, or (B, 1, 1, 1) after `like`.
    """

    t: Tensor  # what the network sees
    alpha: Tensor  # scale of the signal, in [0, 1]
    sigma: Tensor  # scale of the noise, in [0, 1]

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2 (infinite at sigma = 0)."""
        return (self.alpha / self.sigma).square()

    def like(self, x: Tensor) -> "Level":
        """The same level, ready for arithmetic with x (B, C, H, W).

        One level per image takes the dtype and device of x and the shape (B, 1, 1, 1). A single level stays as it is:
        PyTorch takes float64 scalars of the CPU into arithmetic on any device, without a copy and without promoting x.
        """
        if self.t.ndim == 0:
            return self
        shape = (-1,) + (1,) * (x.ndim - 1)
        return Level(*(v.to(x.dtype).to(x.device).reshape(shape) for v in self))


class NoiseSchedule:
    """Levels 0..T in float64, made from the T values alpha_bar_1 > ... > alpha_bar_T of a DDPM.

    The network sees t = i - 1 at level i, the zero-based time step of Ho et al. and of diffusers.
    Raises InputError if alpha_bar is not falling inside (0, 1), or if its last value leaves signal in x_T.
    """

    def __init__(self, alpha_bar: Tensor):
        alpha_bar = alpha_bar.to(torch.float64)
        bounded = torch.cat([alpha_bar.new_ones(1), alpha_bar, alpha_bar.new_zeros(1)])
        if not bool((bounded.diff() < 0).all()):
            raise InputError("schedule: alpha_bar must fall strictly and stay inside (0, 1)")
        if alpha_bar[-1] > MAX_FINAL_ALPHA_BAR:
            raise InputError(
                f"schedule: alpha_bar is still {alpha_bar[-1]:.3g} at the last of {len(alpha_bar)} steps "
                f"(allowed: at most {MAX_FINAL_ALPHA_BAR}), so x_T is no pure noise; use more steps or larger betas"
            )
        self.steps = len(alpha_bar)
        padded = bounded[:-1]
        self._levels = Level((torch.arange(self.steps + 1) - 1.0).clamp(min=0).double(), padded.sqrt(), (1 - padded).sqrt())

    def to(self, device: torch.device) -> "NoiseSchedule":
        """Move the tables, so that picking levels by an index on that device needs no transfer."""
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self._levels = Level(*(v.to(dtype).to(device) for v in self._levels))
        return self

    def __getitem__(self, index: int | Tensor) -> Level:
        """Level(s) at index 0..T: an int gives scalars, a tensor of shape (B,) gives one level per image."""
        return Level(*(v[index] for v in self._levels))


def add_noise(x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """x_t = alpha * x0 + sigma * eps for images (B, C, H, W) (Ho et al. 2020, eq. 4)."""
    level = level.like(x0)
    return level.alpha * x0 + level.sigma * eps


def linear(steps: int) -> Tensor:
    """alpha_bar of betas rising linearly from 1e-4 to 0.02 at T = 1000 (Ho et al. 2020, sec. 4).

    For other T the betas scale by 1000 / T, so that the last level is noise for every T (Nichol & Dhariwal 2021's code).
    """
    scale = 1000 / steps
    return torch.cumprod(1 - torch.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=torch.float64).clamp(max=0.999), 0)


def cosine(steps: int) -> Tensor:
    """alpha_bar along a squared cosine with s = 0.008, betas capped at 0.999 (Nichol & Dhariwal 2021, eq. 17)."""
    s = 0.008
    f = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + s) / (1 + s) * math.pi / 2).square()
    return torch.cumprod(1 - (1 - f[1:] / f[:-1]).clamp(max=0.999), 0)


SCHEDULES: dict[str, Callable[[int], Tensor]] = {"linear": linear, "cosine": cosine}
ScheduleName = Annotated[str, OneOf(SCHEDULES)]


class Diffusion(Section):
    """The `diffusion` section: the length of the forward process."""

    timesteps: Annotated[int, Field(ge=2, le=100_000)]


def make_schedule(name: str, timesteps: int) -> NoiseSchedule:
    """The noise schedule of that name over T = timesteps. Raises InputError for an unknown name."""
    return NoiseSchedule(lookup(SCHEDULES, name, "schedule")(timesteps))
