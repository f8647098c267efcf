"""Writes the config of diffusers' schedulers for a noise schedule of ours, and reads it as one."""

import inspect
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import ConfigDict, Field

from ddpm.core.files import InputError
from ddpm.core.limits import MAX_TIMESTEPS
from ddpm.core.params import Section, lookup, make
from ddpm.diffusion.schedule import MAX_FINAL_ALPHA_BAR, SCHEDULES, Diffusion, NoiseSchedule, rescale_to_zero_terminal_snr

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
VARIANCES = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}
THRESHOLDS = {
    "none": {"clip_sample": False, "thresholding": False},
    "clip": {"clip_sample": True, "thresholding": False},
    "dynamic": {"clip_sample": False, "thresholding": True},
}
TIMESTEP_SPACINGS = {"trailing": None, "leading": None, "linspace": None}
# The schedulers whose config holds betas, with the same defaults.
_READ = ("DDPM", "DDIM", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep")
READABLE = {f"{name}Scheduler": None for name in _READ}
# Largest absolute and relative differences of alpha and sigma, which betas in float32 cause.
ATOL, RTOL = 2e-5, 1e-2


class Scheduler(Section):
    """The entries of a scheduler's config that describe the trained network, with the defaults of diffusers."""

    model_config = ConfigDict(extra="ignore")

    num_train_timesteps: Annotated[int, Field(ge=2, le=MAX_TIMESTEPS)] = 1000
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    beta_schedule: str = "linear"
    trained_betas: list[Annotated[float, Field(ge=0, le=1)]] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    variance_type: str | None = "fixed_small"


class SchedulerInfo(NamedTuple):
    """The diffusion process of a network, from the config of its scheduler.

    schedule: a key of SCHEDULES.
    diffusion: the options of the schedule.
    prediction: what the network predicts.
    variance: diffusers' variance_type.
    """

    schedule: str
    diffusion: Diffusion
    prediction: str
    variance: str | None


def write_scheduler(
    schedule: NoiseSchedule, prediction: str, variance: str, thresholding: str, quantile: float, timestep_spacing: str
) -> dict[str, Any]:
    """Returns the config of a DDPMScheduler, which DDIMPipeline reads too.

    Raises InputError, whose key is the option, for a prediction or an option that diffusers does not have.
    """
    if prediction not in PREDICTIONS:
        raise InputError(
            f"diffusers does not have prediction {prediction!r}, and a conversion needs factors that depend on t, which its "
            f"U-Net cannot apply; a model can be exported if it predicts {', '.join(PREDICTIONS)}",
            key="to",
        )
    lookup(TIMESTEP_SPACINGS, timestep_spacing, "timestep_spacing")
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule.steps,
        "trained_betas": betas_of(schedule),
        "prediction_type": PREDICTIONS[prediction],
        "variance_type": lookup(VARIANCES, variance, "variance"),
        **lookup(THRESHOLDS, thresholding, "thresholding"),
        "dynamic_thresholding_ratio": quantile,
        # diffusers limits the divisor of dynamic thresholding; we do not.
        "sample_max_value": 1e6,
        "timestep_spacing": timestep_spacing,
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }


def betas_of(schedule: NoiseSchedule) -> list[float]:
    """Returns beta_t = 1 - alpha_bar_t / alpha_bar_(t-1), t = 1 .. T (Ho et al. 2020, eq. 4); diffusers rounds to float32."""
    alpha_bar = [schedule[index].alpha ** 2 for index in range(schedule.steps + 1)]
    return [1 - here / before for before, here in pairwise(alpha_bar)]


def _of_powers(scheduler: Scheduler, power: int) -> torch.Tensor:
    """Returns alpha_bar for betas whose roots of this power are evenly spaced."""
    ends = scheduler.beta_start ** (1 / power), scheduler.beta_end ** (1 / power)
    return torch.cumprod(1 - torch.linspace(*ends, scheduler.num_train_timesteps, dtype=torch.float64) ** power, 0)


ALPHA_BARS = {
    "linear": lambda scheduler: _of_powers(scheduler, 1),
    "scaled_linear": lambda scheduler: _of_powers(scheduler, 2),
    "squaredcos_cap_v2": lambda scheduler: SCHEDULES["cosine"](scheduler.num_train_timesteps),
}


def read_scheduler(config: dict[str, Any], recorded: dict[str, Any] | None = None) -> SchedulerInfo:
    """Returns the diffusion process of a network from the config of its scheduler.

    recorded: the `diffusion` entry that our export recorded, if there is one; its options are tried first.
    Raises InputError, whose key is the entry, for an invalid config, and for noise levels that no schedule of ours has.
    """
    lookup(READABLE, config.get("_class_name", "DDPMScheduler"), "_class_name")
    scheduler = make(Scheduler, **{key: value for key, value in config.items() if not key.startswith("_")})
    alpha_bar = _alpha_bar(scheduler)
    schedule, diffusion = _matching(alpha_bar, recorded)
    prediction = {theirs: ours for ours, theirs in PREDICTIONS.items()}[scheduler.prediction_type]
    if prediction == "eps" and alpha_bar[-1] == 0:
        raise InputError(
            "'epsilon' does not determine the image at the last level, where these betas leave no signal", key="prediction_type"
        )
    return SchedulerInfo(schedule, diffusion, prediction, scheduler.variance_type)


def _alpha_bar(scheduler: Scheduler) -> torch.Tensor:
    if scheduler.trained_betas is None:
        alpha_bar = lookup(ALPHA_BARS, scheduler.beta_schedule, "beta_schedule")(scheduler)
    else:
        alpha_bar = torch.cumprod(1 - torch.tensor(scheduler.trained_betas, dtype=torch.float64), 0)
        if len(alpha_bar) != scheduler.num_train_timesteps:
            raise InputError(
                f"has {len(alpha_bar)} entries; num_train_timesteps is {scheduler.num_train_timesteps}", key="trained_betas"
            )
    return rescale_to_zero_terminal_snr(alpha_bar) if scheduler.rescale_betas_zero_snr else alpha_bar


def _matching(alpha_bar: torch.Tensor, recorded: dict[str, Any] | None) -> tuple[str, Diffusion]:
    """Returns the schedule of ours that has these levels, and its options."""
    nearest, least = "", float("inf")
    for name, diffusion in _candidates(alpha_bar, recorded):
        schedule = diffusion.make(name)
        ours = np.array([schedule[i][1:] for i in range(1, schedule.steps + 1)]).T
        theirs = torch.stack([alpha_bar, 1 - alpha_bar]).sqrt().numpy()
        difference = np.abs(ours - theirs)
        if difference.max() <= ATOL and bool((difference <= RTOL * ours).all()):
            return name, diffusion.model_copy(update={"allow_nonzero_terminal_snr": bool(alpha_bar[-1] > MAX_FINAL_ALPHA_BAR)})
        if difference.max() < least:
            nearest, least = name, float(difference.max())
    raise InputError(
        f"no schedule has these noise levels; in the nearest, {nearest!r}, an alpha or sigma differs by {least:.2g} "
        f"(schedules for T = {len(alpha_bar)}: {', '.join(SCHEDULES)})",
        key="beta_schedule",
    )


def _candidates(alpha_bar: torch.Tensor, recorded: dict[str, Any] | None) -> list[tuple[str, Diffusion]]:
    """Returns the schedules to compare with: the recorded one, and each with its default options."""
    defaults = {
        "timesteps": len(alpha_bar), "allow_nonzero_terminal_snr": True, "learned_variance": False,
        "zero_terminal_snr": bool(alpha_bar[-1] < 1e-12),
        **{name: _defaults(name) for name in ("cosine", "sigmoid", "edm")},
    }  # fmt: skip
    candidates = [(name, make(Diffusion, **defaults)) for name in SCHEDULES]
    with suppress(InputError):  # a damaged record is ignored
        options = {key: value for key, value in (recorded or {}).items() if key in Diffusion.model_fields}
        diffusion = make(Diffusion, **{**options, "timesteps": len(alpha_bar), "allow_nonzero_terminal_snr": True})
        diffusion.make(recorded.get("schedule"))
        candidates.insert(0, (recorded["schedule"], diffusion))
    return candidates


def _defaults(schedule: str) -> dict[str, float]:
    """Returns the default options of a schedule."""
    parameters = inspect.signature(SCHEDULES[schedule]).parameters.values()
    return {option.name: option.default for option in parameters if option.default is not option.empty}
