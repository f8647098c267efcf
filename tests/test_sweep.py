"""The sampler sweep: every method within its budget, and a page that says what the numbers say."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import edit_params
from PIL import Image

from ddpm.diffusion.schedule import make_schedule
from ddpm.evaluation.sweep import METHODS, plan_method
from ddpm.judge.classifier import Classifier, save_classifier
from ddpm.reporting.sweep import write_sweep
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.samplers import SAMPLERS


def main_of(stage):
    return import_module(f"stages.{stage}").main


@pytest.fixture
def judge(data):
    save_classifier(Classifier(1, 10), data, 1.0)


def test_it_runs_as_a_stage(model, judge):
    main_of("sweep")()
    metrics = json.loads(Path("reports/sweep/metrics.json").read_text())
    assert metrics["n"] == 60
    assert set(METHODS) <= set(metrics)
    assert set(metrics["DDIM, eta 0"]) == {"nfe_3", "nfe_4", "nfe_50"}
    assert set(metrics["Heun"]) == {"nfe_3"}
    chart = pd.read_csv("reports/sweep/fid.csv")
    assert set(chart.method) == {*METHODS, "real images"}
    page = Path("reports/sweep/index.md").read_text()
    assert all(f"| {name} |" in page for name in METHODS)
    with Image.open("reports/sweep/fid.png") as picture:
        assert picture.width > 800


def test_a_budget_beyond_the_model_is_refused(model, judge, refused):
    edit_params(**{"sweep.evaluations": [5, 51]})
    assert refused(main_of("sweep")) == "params.yaml: sweep.evaluations: 51 is more than the model's T = 50 steps"
    assert not Path("reports/sweep").exists()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("budget", [1, 2, 7, 50])
def test_no_method_exceeds_its_budget(name, budget):
    model = DiffusionModel(torch.nn.Identity(), make_schedule("linear", 50), "v", {})
    plan = plan_method(name, model, budget)
    assert plan.nfe == (budget - (budget % 2 == 0) if name == "Heun" else budget)
    assert plan.stochastic == (name in ("DDIM, eta 0.5", "DDIM, eta 1", "DDPM, large variance", "SDE-DPM-Solver++ 2M"))


def test_every_sampler_takes_part():
    assert {method.sampler for method in METHODS.values()} >= set(SAMPLERS.values())


def rows_of(curves, sd):
    return [
        {"method": name, "spacing": "trailing", "budget": b, "nfe": b, "fid": fid, "fid_sd": sd, "accuracy": 1.0, "seconds": 2.0}
        for name, curve in curves.items()
        for b, fid in curve.items()
    ]  # fmt: skip


CURVES = {
    "DDIM, eta 0": {10: 0.5, 20: 0.3, 50: 0.1, 100: 0.09},
    "DDIM, eta 1": {10: 0.6, 20: 0.2, 50: 0.4, 100: 0.01},
    "DPM-Solver++ 2M": {10: 0.2, 20: 0.105, 50: 0.1, 100: 0.1},
}


@pytest.mark.parametrize(
    ("sd", "said"),
    [
        (np.nan, ["is as good with 50 (0.100)."]),
        (
            0.012,
            [
                "is as good with 20 (0.105), within 0.012, the standard deviation over sets of samples.",
                "with 100 evaluations DDIM, eta 0 has 0.090, and DPM-Solver++ 2M has that from 50 on, within 0.012",
            ],
        ),
    ],
)
def test_the_page_says_what_the_numbers_say(workspace, sd, said):
    write_sweep(rows_of(CURVES, sd), 0.08, 500, "digits")
    page = Path("reports/sweep/index.md").read_text()
    assert "eta 0 beats eta 1 at 2 of 3 budgets" in page
    assert "DDIM, eta 0 has an FID of 0.100 with 50 evaluations; DPM-Solver++ 2M " + said[0] in page
    assert all(sentence in page for sentence in said)
    assert ("Both solve the same ODE" in page) == (len(said) == 2)
    assert ("± 0.012" in page) == (sd == 0.012)
    write_sweep(rows_of({**CURVES, "DPM-Solver++ 2M": {10: 5.0}}, sd), 0.08, 500, "digits")
    assert "DPM-Solver++ 2M does not get there" in Path("reports/sweep/index.md").read_text()
