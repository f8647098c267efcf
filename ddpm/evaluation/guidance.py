"""Quality over the scale of classifier-free guidance: one model, one sampler, the same noise for all."""

from collections.abc import Callable
from typing import Annotated

import numpy as np
from pydantic import Field

from ddpm.core.params import Section
from ddpm.evaluation.evaluator import Evaluator
from ddpm.networks.checkpoints import CheckpointName
from ddpm.sampling.generate import draw
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.plan import make_plan

Count = Annotated[int, Field(ge=1)]
CLASSES, CAPTIONS, UNSEEN = "classes", "captions", "captions never seen"
COLUMNS = ("method", "scale", "nfe", "fid", "fid_sd", "precision", "recall", "accuracy")


class Guidance(Section):
    """The `guidance` section."""

    samples: Annotated[int, Field(ge=2)]
    batch_size: Count
    steps: Count
    scales: list[Annotated[float, Field(ge=0, le=50)]]
    checkpoint: CheckpointName


def why_none(model: DiffusionModel, settings: Guidance) -> str:
    """Why no scales are compared, in one line; "" where they are."""
    if not settings.scales:
        return "guidance.scales is empty"
    if not model.network.takes_labels:
        return "the model takes no class or text (model.conditioning)"
    return "" if model.supports_cfg else "the model was always told the class (train.condition_dropout)"


def compare_scales(
    model: DiffusionModel, judges: Evaluator, settings: Guidance, seed: int, autocast: Callable, on_row: Callable[[dict], None]
) -> list[dict]:
    """Draw by DDIM with each scale, and judge: rows of COLUMNS, each handed to `on_row` as well; none where there is no guidance.

    method: by what the classes were asked for; a network that reads is asked a second time, by captions that it never saw. NaN
    where there are fewer than three sets of samples (fid_sd), and no class is told (accuracy at scale 0).

    Raises InputError for fewer than 6 samples or test images.
    """
    rows: list[dict] = []
    if why_none(model, settings):
        return rows
    judges.check_enough("guidance", "guidance.samples")
    for told in (CAPTIONS, UNSEEN) if model.network.takes_text else (CLASSES,):
        for scale in sorted(set(settings.scales)):
            if told == UNSEEN and scale == 0:  # nothing is told
                continue
            plan = make_plan(model, steps=min(settings.steps, model.schedule.steps), guidance=scale)
            drawn = draw(model, plan, settings.samples, settings.batch_size, seed, "guidance", autocast, told == UNSEEN)
            scores = judges.compare(drawn.arrays["arr_0"], drawn.arrays.get("arr_1"), "guidance")
            rows.append(
                {"method": told, "scale": scale, "nfe": plan.nfe, **{key: scores.get(key, np.nan) for key in COLUMNS[3:]}}
            )
            on_row(rows[-1])
    return rows
