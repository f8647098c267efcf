"""FID over the steps of the training: samples of its snapshots, which all start from the same noise."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddpm.evaluation.evaluator import CLASSIFIER, Evaluate, Evaluator
from ddpm.networks.power_ema import TRACKED_SIGMA_REL, list_snapshots
from ddpm.sampling.generate import generate_set
from ddpm.sampling.model import DiffusionModel, at_snapshot
from ddpm.sampling.plan import make_plan

COLUMNS = ("method", "step", "fid", "fid_sd")
REAL_IMAGES = "real test images"
WIDTH = TRACKED_SIGMA_REL[-1]  # a snapshot holds this EMA at its own step, as a training that ended there would give it
SAMPLER_STEPS = 20
BATCH_SIZE = 100


def spread_steps(steps: list[int], count: int) -> list[int]:
    """Returns at most `count` of the ascending steps: those nearest to even parts of the training, the last always among them."""
    wanted = np.linspace(0, steps[-1], count + 1)[1:]
    return sorted({min(steps, key=lambda step, goal=goal: abs(step - goal)) for goal in wanted})


def training_curve(
    model: DiffusionModel, folder: Path, evaluator: Evaluator, settings: Evaluate, seed: int, autocast: Callable
) -> tuple[list[dict], str]:
    """Generates samples by DDIM with the averages of a model folder's snapshots and scores them: (rows of COLUMNS, note).

    Each step has a row of its samples and one of real images, the FID of n test images. fid_sd is NaN where there are fewer than
    three sets of samples. The note is one line on why there are no rows, or "". The model's network holds the last snapshot
    afterwards.

    Raises InputError for damaged snapshots.
    """
    steps = list_snapshots(folder)
    if not settings.training_curve:
        return [], "no FID over training steps: evaluate.training_curve is 0"
    if not steps:
        return [], "no FID over training steps: the model was trained without snapshots (train.snapshots)"
    if evaluator.classifier.status != "ok":
        return [], f"no FID over training steps: {evaluator.classifier.status}"
    # A set of fewer than n images would have a larger FID.
    count, rows = max(settings.training_curve_samples, evaluator.sizes.n), []
    for step in spread_steps(steps, settings.training_curve):
        snapshot = at_snapshot(model, folder, step, WIDTH)
        plan = make_plan(snapshot, steps=min(SAMPLER_STEPS, snapshot.schedule.steps))
        samples = generate_set(snapshot, plan, count, BATCH_SIZE, seed, "training_curve", autocast).arrays["arr_0"]
        scores = evaluator.evaluate(samples, None, "training_curve", level="fid").scores[CLASSIFIER]
        rows.append({"method": f"{plan.label}, {plan.nfe} steps", "step": step, **scores})
        rows.append({"method": REAL_IMAGES, "step": step, "fid": evaluator.fid_floor})
    return [{key: row.get(key, np.nan) for key in COLUMNS} for row in rows], ""
