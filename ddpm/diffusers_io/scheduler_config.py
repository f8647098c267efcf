"""The config of diffusers' schedulers: written for a noise schedule of ours, and read as one."""

import inspect
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import ConfigDict, Field

from ddpm.core.files import InputError
from ddpm.core.params import Section, lookup, make
from ddpm.diffusion.schedule import MAX_FINAL_ALPHA_BAR, SCHEDULES, Diffusion, NoiseSchedule, rescale_to_zero_terminal_snr

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
VARIANCES = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}

THRESHOLDS = {
    "none": {"clip_sample": False, "thresholding": False},
    "clip": {"clip_sample": True, "thresholding": False},
    "dynamic": {"clip_sample": False, "thresholding": True},
}

TIMESTEP_SPACINGS = {name: name for name in ("trailing", "leading", "linspace")}

# Those whose config holds betas, with the same defaults.
READABLE = dict.fromkeys(
    f"{name}Scheduler"
    for name in ("DDPM", "DDIM", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep")
)  # fmt: skip

# How far alpha and sigma of a level may be from ours, and as a share of ours: what betas in float32 make of them.
SAME, SAME_SHARE = 2e-5, 1e-2


class Scheduler(Section):
    """What of a scheduler's config says what the network has learned, with the defaults of diffusers."""

    model_config = ConfigDict(extra="ignore")

    num_train_timesteps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    beta_schedule: str = "linear"
    trained_betas: list[Annotated[float, Field(ge=0, le=1)]] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    variance_type: str | None = "fixed_small"


class Learned(NamedTuple):
    """What a network has learned, as config.json has it: schedule, its options, what it predicts; and diffusers' variance."""

    schedule: str
    diffusion: Diffusion
    prediction: str
    variance: str | None


def write_scheduler(
    schedule: NoiseSchedule, prediction: str, variance: str, thresholding: str, quantile: float, timestep_spacing: str
) -> dict[str, Any]:
    """The config of a DDPMScheduler, from which DDIMPipeline makes its own.

    Raises InputError, beginning with the option, for what it cannot do.
    """
    if prediction not in PREDICTIONS:
        raise InputError(
            f"diffusers has no counterpart of prediction {prediction!r}: turning it into one that it has takes factors that "
            f"change with t, which its U-Net does not multiply by; it has {', '.join(PREDICTIONS)}",
            key="to",
        )
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule.steps,
        "trained_betas": betas_of(schedule),
        "prediction_type": PREDICTIONS[prediction],
        "variance_type": lookup(VARIANCES, variance, "variance"),
        **lookup(THRESHOLDS, thresholding, "thresholding"),
        "dynamic_thresholding_ratio": quantile,
        # diffusers limits what it divides by; we do not.
        "sample_max_value": 1e6,
        "timestep_spacing": lookup(TIMESTEP_SPACINGS, timestep_spacing, "timestep_spacing"),
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }


def betas_of(schedule: NoiseSchedule) -> list[float]:
    """beta_1 .. beta_T, 1 - alpha_bar_t / alpha_bar_(t-1) (Ho et al. 2020, eq. 4); diffusers rounds them to float32."""
    alpha_bar = [schedule[index].alpha ** 2 for index in range(schedule.steps + 1)]
    return [1 - here / before for before, here in pairwise(alpha_bar)]


def _linear(given: Scheduler) -> torch.Tensor:
    return torch.linspace(given.beta_start, given.beta_end, given.num_train_timesteps, dtype=torch.float64)


def _scaled_linear(given: Scheduler) -> torch.Tensor:
    ends = given.beta_start**0.5, given.beta_end**0.5
    return torch.linspace(*ends, given.num_train_timesteps, dtype=torch.float64).square()


ALPHA_BARS = {
    "linear": lambda given: torch.cumprod(1 - _linear(given), 0),
    "scaled_linear": lambda given: torch.cumprod(1 - _scaled_linear(given), 0),
    "squaredcos_cap_v2": lambda given: SCHEDULES["cosine"](given.num_train_timesteps),
}


def read_scheduler(config: dict[str, Any], recorded: dict[str, Any] | None = None) -> Learned:
    """What a network has learned, by the config of its scheduler. recorded: the `diffusion` entry of the config.json that the
    model had before it was exported, if that is known, whose options no other file has.

    Raises InputError, beginning with the key, for a config that is none, and for noise levels that no schedule of ours has.
    """
    lookup(READABLE, config.get("_class_name", "DDPMScheduler"), "_class_name")
    given = make(Scheduler, **{key: value for key, value in config.items() if not key.startswith("_")})
    alpha_bar = _alpha_bar(given)
    schedule, diffusion = _matching(alpha_bar, recorded)
    prediction = {theirs: ours for ours, theirs in PREDICTIONS.items()}[given.prediction_type]
    if prediction == "eps" and alpha_bar[-1] == 0:
        raise InputError(
            "'epsilon' says nothing of the image at the last level, where betas leave no signal of it", key="prediction_type"
        )
    return Learned(schedule, diffusion, prediction, given.variance_type)


def _alpha_bar(given: Scheduler) -> torch.Tensor:
    if given.trained_betas is None:
        alpha_bar = lookup(ALPHA_BARS, given.beta_schedule, "beta_schedule")(given)
    else:
        alpha_bar = torch.cumprod(1 - torch.tensor(given.trained_betas, dtype=torch.float64), 0)
        if len(alpha_bar) != given.num_train_timesteps:
            raise InputError(f"{len(alpha_bar)} do not fit num_train_timesteps, {given.num_train_timesteps}", key="trained_betas")
    return rescale_to_zero_terminal_snr(alpha_bar) if given.rescale_betas_zero_snr else alpha_bar


def _matching(alpha_bar: torch.Tensor, recorded: dict[str, Any] | None) -> tuple[str, Diffusion]:
    """The schedule of ours that has these levels, and its options."""
    nearest, least = "", float("inf")
    for name, diffusion in _candidates(alpha_bar, recorded):
        schedule = diffusion.make(name)
        ours = np.array([schedule[i][1:] for i in range(1, schedule.steps + 1)]).T
        theirs = torch.stack([alpha_bar, 1 - alpha_bar]).sqrt().numpy()
        apart = np.abs(ours - theirs)
        if apart.max() <= SAME and bool((apart <= SAME_SHARE * ours).all()):
            return name, diffusion.model_copy(update={"allow_nonzero_terminal_snr": bool(alpha_bar[-1] > MAX_FINAL_ALPHA_BAR)})
        if apart.max() < least:
            nearest, least = name, float(apart.max())
    raise InputError(
        f"the scheduler's noise levels are none of ours; the nearest, {nearest!r}, has an alpha or sigma that is {least:.2g} "
        f"from theirs (ours, for T = {len(alpha_bar)}: {', '.join(SCHEDULES)})"
    )


def _candidates(alpha_bar: torch.Tensor, recorded: dict[str, Any] | None) -> list[tuple[str, Diffusion]]:
    """Our schedules of as many levels: the recorded one, and each with its usual options."""
    usual = {
        "timesteps": len(alpha_bar), "allow_nonzero_terminal_snr": True, "learned_variance": False,
        "zero_terminal_snr": bool(alpha_bar[-1] < 1e-12),
        **{name: _usual(name) for name in ("cosine", "sigmoid", "edm")},
    }  # fmt: skip
    found = [(name, make(Diffusion, **usual)) for name in SCHEDULES]
    with suppress(InputError):  # a record that is damaged says nothing
        options = {key: value for key, value in (recorded or {}).items() if key in Diffusion.model_fields}
        remembered = make(Diffusion, **{**options, "timesteps": len(alpha_bar), "allow_nonzero_terminal_snr": True})
        remembered.make(recorded.get("schedule"))
        found.insert(0, (recorded["schedule"], remembered))
    return found


def _usual(schedule: str) -> dict[str, float]:
    """The options of a schedule, as its function has them."""
    given = inspect.signature(SCHEDULES[schedule]).parameters.values()
    return {option.name: option.default for option in given if option.default is not option.empty}
