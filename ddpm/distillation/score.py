"""Scores students beside their teacher, from the same noise."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddpm.distillation.distill import Student
from ddpm.evaluation.evaluator import CLASSIFIER, Evaluator
from ddpm.evaluation.sweep import plan_method
from ddpm.sampling.generate import generate_set
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.plan import make_plan

STUDENT = "student"
TEACHER_METHODS = ("DDIM, eta 0", "DPM-Solver++ 2M")
REFERENCE_STEPS = 50  # of the teacher, beside those of the students
BATCH_SIZE, GRID_IMAGES = 250, 10
SCORES = ("fid", "fid_sd", "precision", "recall")
MEMORIZATION = ("nn_auc", "near_copies")


def score_students(
    teacher: DiffusionModel,
    students: Sequence[Student],
    evaluator: Evaluator,
    samples: int,
    seed: int,
    autocast: Callable,
    on_row: Callable[[dict], None],
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Generates samples with the teacher, by two samplers, and with each student, and scores them.

    on_row: called with each row.

    Returns (rows, grids). rows: {method, nfe, fid, fid_sd, precision, recall, accuracy, nn_auc, near_copies, seconds_per_1000},
    NaN where a value is not known. grids: the first samples, uint8 (GRID_IMAGES, H, W, C), of the teacher by DDIM and of each
    student.

    Raises InputError for fewer than 6 samples or test images.
    """
    evaluator.check_enough("distill", "distill.samples")
    longest = min(REFERENCE_STEPS, teacher.schedule.steps)
    counts = sorted({*(student.steps for student in students), longest})
    tasks = [(name, teacher, plan_method(name, teacher, steps)) for name in TEACHER_METHODS for steps in counts]
    tasks += [(STUDENT, student.model, make_plan(student.model)) for student in students]
    rows, grids = [], {}
    for method, model, plan in tasks:
        drawn = generate_set(model, plan, samples, BATCH_SIZE, seed, "distill", autocast)
        images = drawn.arrays["arr_0"]
        scores = evaluator.evaluate(images, drawn.arrays.get("arr_1"), "distill", level="coverage").scores
        row = {"method": method, "nfe": plan.nfe} | {name: scores[CLASSIFIER].get(name, np.nan) for name in SCORES}
        copies = evaluator.memorization.score(evaluator.memorization.nearest(images, "distill"))
        row |= {"accuracy": scores.get("accuracy", np.nan)} | {name: copies[name] for name in MEMORIZATION}
        row |= {"seconds_per_1000": 1000 * drawn.cost["seconds"] / samples}
        rows.append(row)
        on_row(row)
        if method == STUDENT or (method == TEACHER_METHODS[0] and plan.nfe == longest):
            name = "student" if method == STUDENT else "teacher"
            grids[f"{name}, {plan.nfe}"] = images[:GRID_IMAGES]
    return rows, grids
