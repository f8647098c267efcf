"""Noise schedules: tables of the levels t of x_t = alpha x0 + sigma eps.

Level 0 is the clean image (alpha = 1, sigma = 0), level T is noise. alpha^2 is alpha_bar of the DDPM paper. All schedules are
variance-preserving (alpha^2 + sigma^2 = 1). This only fixes the scale of x_t; SNR = alpha^2 / sigma^2 defines a level.
"""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.core.limits import MAX_NOISE_RATIO, MAX_TIMESTEPS
from ddpm.core.params import OneOf, Section, lookup

# Sampling starts from pure noise. A schedule with more signal than this at its last level does not train the network for it.
MAX_FINAL_ALPHA_BAR = 1e-2
MAX_BETA = 0.999


def per_image(values: Tensor, x: Tensor) -> Tensor:
    """Returns values (B,) as (B, 1, 1, 1), in the dtype and on the device of images x (in this order: MPS has no float64)."""
    return values.to(x.dtype).to(x.device).reshape((-1,) + (1,) * (x.ndim - 1))


class Level(NamedTuple):
    """One noise level, as floats, or a batch of levels, as tensors (B,), or (B, 1, 1, 1) after `like`.

    Floats need no copy to the device and do not change the dtype of the images.

    t: the time that the network receives.
    alpha: scale of the signal.
    sigma: scale of the noise.
    """

    t: float | Tensor
    alpha: float | Tensor
    sigma: float | Tensor

    @property
    def snr(self) -> float | Tensor:
        """The signal-to-noise ratio alpha^2 / sigma^2; a single level needs sigma > 0."""
        return (self.alpha / self.sigma) ** 2

    def like(self, x: Tensor) -> "Level":
        """Returns the level for arithmetic with x (B, C, H, W): a batch of levels gets its dtype, device and dimensions."""
        return self if isinstance(self.t, float) else Level(*(per_image(v, x) for v in self))


def combine(a: float | Tensor, x: Tensor, b: float | Tensor, y: Tensor) -> Tensor:
    """Returns a x + b y. For float b this is one torch.add, which saves kernel launches on small images."""
    if isinstance(b, float):
        return torch.add(x if a == 1 else x * a, y, alpha=b)
    return a * x + b * y


class NoiseSchedule:
    """The levels 0..T, in float64, of alpha_bar_1 > ... > alpha_bar_T >= 0.

    At level i the network receives t = i - 1, the zero-based time step of Ho et al. 2020 and diffusers. Between the levels,
    log-SNR is linear in i, so that a sampler may use any noise level (as in k-diffusion).

    Raises InputError if alpha_bar does not decrease strictly inside (0, 1), where the last value may be 0, or if the last value
    is above MAX_FINAL_ALPHA_BAR without allow_nonzero_terminal_snr.
    """

    def __init__(self, alpha_bar: Tensor, allow_nonzero_terminal_snr: bool = False):
        alpha_bar = alpha_bar.to(torch.float64)
        padded = torch.cat([alpha_bar.new_ones(1), alpha_bar])
        if not bool((padded.diff() < 0).all() and padded[-1] >= 0):
            message = "alpha_bar must decrease strictly inside (0, 1), by more than the precision of float64"
            raise InputError(message, key="schedule")
        if alpha_bar[-1] > MAX_FINAL_ALPHA_BAR and not allow_nonzero_terminal_snr:
            raise InputError(
                f"alpha_bar is {alpha_bar[-1]:.3g} at the last of {len(alpha_bar)} steps (allowed: {MAX_FINAL_ALPHA_BAR}), "
                "so x_T is not noise; set diffusion.zero_terminal_snr to true, or accept it with allow_nonzero_terminal_snr",
                key="schedule",
            )
        self.steps = len(alpha_bar)
        self._levels = Level((torch.arange(self.steps + 1) - 1.0).clamp(min=0).double(), padded.sqrt(), (1 - padded).sqrt())
        self._table = np.stack([v.numpy() for v in self._levels])
        # Half the log-SNR, lambda = log(alpha / sigma), of the levels 1..T; the last one is -inf at zero terminal SNR.
        with np.errstate(divide="ignore"):
            self.log_ratio: np.ndarray = np.log(self._table[1, 1:]) - np.log(self._table[2, 1:])

    def to(self, device: torch.device) -> "NoiseSchedule":
        """Moves the tables to the device, so that indexing with a tensor on it needs no transfer; returns self."""
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self._levels = Level(*(v.to(dtype).to(device) for v in self._levels))
        return self

    def __getitem__(self, index: float | Tensor) -> Level:
        """Returns the level at a position, a number that is 0 or from 1 to T, or the levels of an index tensor (B,)."""
        if isinstance(index, Tensor):
            return Level(*(v[index] for v in self._levels))
        if index == int(index):
            return Level(*self._table[:, int(index)].tolist())
        log_ratio = float(np.interp(index, np.arange(1, self.steps + 1), self.log_ratio))
        # math.hypot squares without overflow.
        return Level(float(index) - 1, 1 / math.hypot(1, math.exp(-log_ratio)), 1 / math.hypot(1, math.exp(log_ratio)))

    def position(self, log_ratio: np.ndarray) -> np.ndarray:
        """Returns the positions in 1..T at which lambda = log(alpha / sigma) has these values; the inverse of indexing."""
        return np.interp(-log_ratio, -self.log_ratio, np.arange(1, self.steps + 1))


def add_noise(x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """Returns x_t = alpha x0 + sigma eps for images (B, C, H, W) (Ho et al. 2020, eq. 4)."""
    level = level.like(x0)
    return combine(level.alpha, x0, level.sigma, eps)


def add_more_noise(x_t: Tensor, eps: Tensor, t: Level, s: Level) -> Tensor:
    """Returns a sample of q(x_s | x_t) for a level s noisier than t, the forward process (Ho et al. 2020, eq. 2)."""
    scale = s.alpha / t.alpha
    return combine(scale, x_t, math.sqrt(max(0.0, s.sigma**2 - (scale * t.sigma) ** 2)), eps)


def _from_betas(steps: int, first: float, last: float, power: int) -> Tensor:
    """Returns alpha_bar of betas whose power-th roots increase linearly from `first` to `last`, for T = 1000.

    For other T the betas are scaled by 1000 / T, so that the last level is noise for every T (Nichol & Dhariwal 2021's code).
    """
    u = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = first ** (1 / power), last ** (1 / power)
    beta = (low + (high - low) * u) ** power * 1000 / steps
    return torch.cumprod(1 - beta.clamp(max=MAX_BETA), 0)


def _from_curve(steps: int, curve: Callable[[Tensor], Tensor], max_beta: float) -> Tensor:
    """Returns alpha_bar proportional to a curve over t / T in 0..1; betas are at most max_beta, since the curve may end at 0."""
    f = curve(torch.arange(steps + 1, dtype=torch.float64) / steps)
    return torch.cumprod(1 - (1 - f[1:] / f[:-1]).clamp(max=max_beta), 0)


def cosine(steps: int, s: float = 0.008, max_beta: float = MAX_BETA) -> Tensor:
    """Returns alpha_bar ~ cos^2((t / T + s) / (1 + s) pi / 2) (Nichol & Dhariwal 2021, eq. 17)."""
    return _from_curve(steps, lambda u: torch.cos((u + s) / (1 + s) * math.pi / 2).square(), max_beta)


def sigmoid(steps: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Tensor:
    """Returns alpha_bar along the part start..end of a sigmoid with temperature tau (Jabri et al. 2023; Chen 2023, alg. 1)."""
    # Not normalized as in Chen 2023: only ratios of the curve's values matter.
    last = torch.sigmoid(torch.tensor(end / tau, dtype=torch.float64))
    return _from_curve(steps, lambda u: last - torch.sigmoid((start + (end - start) * u) / tau), MAX_BETA)


def edm(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Returns alpha_bar of EDM's noise levels, evenly spaced in sigma_edm^(1/rho) (Karras et al. 2022, eq. 5).

    EDM's noisy image is x0 + sigma_edm eps. Here it is divided by sqrt(1 + sigma_edm^2), as EDM does at the network's input.
    """
    ends = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigma = torch.linspace(*ends, steps, dtype=torch.float64) ** rho
    return 1 / (1 + sigma.square())


def rescale_to_zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """Returns alpha_bar with alpha shifted and scaled to end at 0 and keep its first value (Lin et al. 2024, alg. 1)."""
    alpha = alpha_bar.sqrt()
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])).square()


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "linear": lambda steps: _from_betas(steps, 1e-4, 0.02, power=1),  # Ho et al. 2020, sec. 4
    "scaled_linear": lambda steps: _from_betas(steps, 8.5e-4, 0.012, power=2),  # Rombach et al. 2022's code
    "quadratic": lambda steps: _from_betas(steps, 1e-4, 0.02, power=2),  # `quad` of Ho et al. 2020's code
    "cosine": cosine,
    "sigmoid": sigmoid,
    "edm": edm,
}

ScheduleName = Annotated[str, OneOf(SCHEDULES)]
Logit = Annotated[float, Field(ge=-30, le=30)]
NoiseRatio = Annotated[float, Field(ge=1 / MAX_NOISE_RATIO, le=MAX_NOISE_RATIO)]  # sigma / alpha


class Cosine(Section):
    """The options of schedule: cosine."""

    s: Annotated[float, Field(ge=0, le=1)]
    max_beta: Annotated[float, Field(gt=0, lt=1)]


class Sigmoid(Section):
    """The options of schedule: sigmoid."""

    start: Logit
    end: Logit
    tau: Annotated[float, Field(ge=0.1, le=10)]

    @model_validator(mode="after")
    def _rises(self) -> "Sigmoid":
        if self.start >= self.end:
            raise ValueError("needs start below end")
        return self


class EDM(Section):
    """The options of schedule: edm."""

    sigma_min: NoiseRatio
    sigma_max: NoiseRatio
    rho: Annotated[float, Field(ge=1, le=100)]

    @model_validator(mode="after")
    def _rises(self) -> "EDM":
        if self.sigma_min >= self.sigma_max:
            raise ValueError("needs sigma_min below sigma_max")
        return self


class Diffusion(Section):
    """The `diffusion` section: the forward process, with the options of the schedules that have any."""

    timesteps: Annotated[int, Field(ge=2, le=MAX_TIMESTEPS)]
    zero_terminal_snr: bool
    allow_nonzero_terminal_snr: bool
    learned_variance: bool
    cosine: Cosine
    sigmoid: Sigmoid
    edm: EDM

    def make(self, schedule: str) -> NoiseSchedule:
        """Returns the noise schedule of that name. Raises InputError, with the options, if they are impossible."""
        section = getattr(self, schedule, None)
        options = section.model_dump() if section else {}
        terminal = {"zero_terminal_snr": self.zero_terminal_snr, "allow_nonzero_terminal_snr": self.allow_nonzero_terminal_snr}
        try:
            return make_schedule(schedule, self.timesteps, **terminal, **options)
        except InputError as error:
            cause = f" (diffusion.{schedule}: {options})" if options else ""
            raise InputError(f"{error.message}{cause}", key=error.key, where="params.yaml") from None


def make_schedule(
    name: str, timesteps: int, *, zero_terminal_snr: bool = False, allow_nonzero_terminal_snr: bool = False, **options: float
) -> NoiseSchedule:
    """Returns the noise schedule of that name with T = timesteps. Raises InputError for an unknown name or impossible options.

    >>> level = make_schedule("cosine", 1000)[500]
    >>> round(level.alpha**2 + level.sigma**2, 12), level.t
    (1.0, 499.0)
    """
    alpha_bar = lookup(SCHEDULES, name, "schedule")(timesteps, **options)
    return NoiseSchedule(rescale_to_zero_terminal_snr(alpha_bar) if zero_terminal_snr else alpha_bar, allow_nonzero_terminal_snr)
