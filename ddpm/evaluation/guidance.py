"""Compares scales of classifier-free guidance: one model, one sampler, the same noise for all."""

from collections.abc import Callable
from typing import Annotated

import numpy as np
from pydantic import Field

from ddpm.core.limits import MAX_GUIDANCE
from ddpm.core.params import Section
from ddpm.evaluation.evaluator import CLASSIFIER, Evaluator
from ddpm.networks.checkpoints import CheckpointName
from ddpm.sampling.generate import generate_set
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.plan import make_plan
from ddpm.sampling.settings import Count, Steps

# Values of the column `method`: how samples were conditioned.
CLASSES, CAPTIONS, HELD_OUT_CAPTIONS = "classes", "captions", "captions never seen"
COLUMNS = ("method", "scale", "nfe", "fid", "fid_sd", "precision", "recall", "accuracy")


class Guidance(Section):
    """The `guidance` section."""

    samples: Annotated[Count, Field(ge=2)]
    batch_size: Count
    steps: Steps
    scales: Annotated[list[Annotated[float, Field(ge=0, le=MAX_GUIDANCE)]], Field(max_length=100)]
    checkpoint: CheckpointName


def why_skipped(model: DiffusionModel, evaluator: Evaluator, settings: Guidance) -> str:
    """Returns one line on why no scales are compared, "" where they are."""
    if not settings.scales:
        return "guidance.scales is empty"
    if not model.network.takes_labels:
        return "the model takes no class or text (model.conditioning)"
    if not model.supports_cfg:
        return "the model was trained without dropped conditioning (train.condition_dropout)"
    return "" if evaluator.classifier.status == "ok" else evaluator.classifier.status


def compare_scales(
    model: DiffusionModel, evaluator: Evaluator, settings: Guidance, seed: int, autocast: Callable, on_row: Callable[[dict], None]
) -> list[dict]:
    """Generates samples by DDIM at each scale and scores them: rows of COLUMNS, none where there is no guidance.

    A text network is sampled a second time, with caption templates that training held out. fid_sd is NaN where there are fewer
    than three sets of samples, accuracy at scale 0, which is unconditional, and where the
    classifier predicts no classes.
    on_row: called with each row.

    Raises InputError for fewer than 6 samples or test images.
    """
    rows: list[dict] = []
    if why_skipped(model, evaluator, settings):
        return rows
    evaluator.check_enough("guidance", "guidance.samples")
    for method in (CAPTIONS, HELD_OUT_CAPTIONS) if model.network.takes_text else (CLASSES,):
        held_out = method == HELD_OUT_CAPTIONS
        for scale in sorted(set(settings.scales)):
            if held_out and scale == 0:  # unconditional: captions make no difference
                continue
            plan = make_plan(model, steps=min(settings.steps, model.schedule.steps), guidance=scale)
            samples = generate_set(model, plan, settings.samples, settings.batch_size, seed, "guidance", autocast, held_out)
            result = evaluator.evaluate(samples.arrays["arr_0"], samples.arrays.get("arr_1"), "guidance", level="coverage")
            scores = result.scores | result.scores[CLASSIFIER]
            rows.append({"method": method, "scale": scale, "nfe": plan.nfe})
            rows[-1] |= {key: scores.get(key, np.nan) for key in COLUMNS[3:]}
            on_row(rows[-1])
    return rows
