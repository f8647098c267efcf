"""The sampler sweep: every method within its budget, the EMA widths, and the statements of the page."""

import json
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import edit_params, input_error
from PIL import Image

from ddpm.core import params
from ddpm.core.device import Runtime
from ddpm.core.weights import read_weights, save_weights, weights_id
from ddpm.diffusion.schedule import make_schedule
from ddpm.evaluation.evaluator import Evaluate
from ddpm.evaluation.run import open_run
from ddpm.evaluation.sweep import METHODS, plan_method
from ddpm.evaluation.training_curve import COLUMNS, REAL_IMAGES, spread_steps, training_curve
from ddpm.networks.checkpoints import load_model
from ddpm.networks.power_ema import TRACKED_SIGMA_REL, save_snapshot, snapshot_file, supported_range
from ddpm.report.sweep import write_sweep
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.samplers import SAMPLERS

NO_SNAPSHOTS = "No EMA widths are compared: the model was trained without snapshots (train.snapshots)."


def run():
    import_module("stages.sweep").main()
    return json.loads(Path("reports/sweep/metrics.json").read_text()), Path("reports/sweep/index.md").read_text()


@pytest.fixture
def snapshots(model):
    """models/ddpm with snapshots of weights that still change, 0.05 more than 0.1."""
    file = Path("models/ddpm/final.safetensors")
    # An untrained network ends in zeros, and then all weights generate the same images.
    generator = torch.Generator().manual_seed(0)
    final = {name: v + 0.1 * torch.randn(v.shape, generator=generator) for name, v in read_weights(file, "train").items()}
    save_weights(file, final)
    for step in (700, 900, 1000):
        tracks = {width: {k: v * (1 + step * (0.15 - width) / 1e3) for k, v in final.items()} for width in TRACKED_SIGMA_REL}
        save_snapshot(Path("models/ddpm"), step, tracks)


def test_sweep_writes_all_methods_and_budgets(model, classifier, capsys):
    metrics, page = run()
    assert NO_SNAPSHOTS in capsys.readouterr().out.splitlines()
    assert metrics["n"] == 60
    network, _ = load_model(Path("models/ddpm"), "final", torch.device("cpu"))
    assert metrics["model"] == weights_id("final", network)
    assert set(METHODS) <= set(metrics)
    assert set(metrics["DDIM, eta 0"]) == {"nfe_3", "nfe_4", "nfe_50"}
    assert set(metrics["Heun"]) == {"nfe_3"}
    assert set(pd.read_csv("reports/sweep/fid.csv").method) == {*METHODS, "real images"}
    assert all(f"| {name} |" in page for name in METHODS)
    with Image.open("reports/sweep/fid.png") as image:
        assert image.width > 800
    # dvc.yaml names these as well, so they exist for every model.
    assert NO_SNAPSHOTS in page
    assert "ema.png" not in page
    assert set(metrics["ema"]) == {"final"}
    assert set(pd.read_csv("reports/sweep/ema.csv").method) == {"final", "real images"}
    assert Path("reports/sweep/ema.png").stat().st_size > 1_000


def test_sweep_compares_ema_widths(snapshots, classifier, capsys):
    edit_params(**{"sweep.ema_steps": 5, "sweep.evaluations": [3], "sweep.full_length": False})
    edit_params(**{"sweep.ema_widths": [0.1, 0.02, 0.05, 0.07, 0.1]})
    metrics, page = run()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("EMA")]
    assert [line.split(":")[0] for line in printed] == ["EMA final", "EMA 0.05", "EMA 0.07", "EMA 0.1"]
    widths, metrics = {0.05: "width_0.05", 0.07: "width_0.07", 0.1: "width_0.1"}, metrics["ema"]
    assert set(metrics) == {"final", "best_width", *widths.values()}
    fids = {width: metrics[key]["fid"] for width, key in widths.items()}
    assert len(set(fids.values()) | {metrics["final"]["fid"]}) == 4
    assert metrics["best_width"] == min(fids, key=fids.get)
    chart = pd.read_csv("reports/sweep/ema.csv")
    rebuilt = chart[chart.method == "rebuilt EMA"]
    assert rebuilt.width.tolist() == [0.05, 0.07, 0.1]
    assert rebuilt.fid.tolist() == pytest.approx([fids[width] for width in rebuilt.width], abs=1e-5)
    assert (rebuilt.nfe == 5).all()
    for name in ("final", "real images"):
        assert chart[chart.method == name].width.tolist() == [0.05, 0.1]
    assert f"The best width is {metrics['best_width']:g}, with an FID of " in page
    assert "| 0.07 | " in page
    narrowest, widest = supported_range([700, 900, 1000])
    assert f"Left out: 0.02. 3 snapshots reach from {narrowest:g} to {widest:g}; train.snapshots gives more." in page
    assert "(ema.png)" in page
    edit_params(**{"sweep.ema_widths": []})
    assert "No EMA widths are compared: sweep.ema_widths is empty." in run()[1]


def test_sweep_refuses_a_damaged_snapshot(snapshots, classifier):
    edit_params(**{"sweep.evaluations": [3], "sweep.full_length": False})
    file = snapshot_file(Path("models/ddpm"), 900)
    file.write_bytes(b"nothing")
    with input_error(str(file), match="damaged"):
        run()


def test_sweep_refuses_budgets_above_the_steps_of_the_model(model, classifier):
    for key, value in (("sweep.ema_steps", 51), ("sweep.evaluations", [5, 51])):
        edit_params(**{key: value})
        with input_error(key):
            run()
    assert not Path("reports/sweep").exists()


def scored_training(**edits):
    """The rows of the training curve, and its note."""
    edit_params(**{f"evaluate.{key}": value for key, value in edits.items()})
    p = params.load(dataset=str, seed=params.Seed, prepare_data=dict, evaluate=Evaluate, runtime=Runtime)
    run = open_run(p, "final")
    return training_curve(run.model, Path("models/ddpm"), run.evaluator(60), p.evaluate, p.seed, nullcontext)


def test_training_curve_scores_the_snapshots(snapshots, classifier):
    rows, note = scored_training(training_curve=2)
    assert note == ""
    frame = pd.DataFrame(rows, columns=COLUMNS)
    assert frame.step.tolist() == [700, 700, 1000, 1000]
    assert frame.method.tolist() == ["DDIM, 20 steps", REAL_IMAGES] * 2
    assert frame.fid[0] != frame.fid[2], "other weights"
    assert frame.fid[1] == frame.fid[3]
    again = pd.DataFrame(scored_training(training_curve=2)[0])
    pd.testing.assert_frame_equal(frame, again, check_exact=True)


@pytest.mark.parametrize(("edits", "setting"), [({}, "train.snapshots"), ({"training_curve": 0}, "evaluate.training_curve is 0")])
def test_training_curve_says_why_it_is_empty(model, classifier, edits, setting):
    rows, note = scored_training(**edits)
    assert rows == []
    assert setting in note


@pytest.mark.parametrize(
    ("steps", "count", "chosen"),
    [([10, 20, 30], 1, [30]), ([10, 20, 30], 9, [10, 20, 30]), ([313, 625, 938, 990, 1000], 2, [625, 1000]), ([7], 3, [7])],
)
def test_spread_steps_divide_the_training_evenly(steps, count, chosen):
    assert spread_steps(steps, count) == chosen


@pytest.mark.parametrize("budget", [1, 2, 7, 50])
def test_plan_method_stays_within_its_budget(budget):
    model = DiffusionModel(torch.nn.Identity(), make_schedule("linear", 50), "v", {})
    for name in METHODS:
        plan = plan_method(name, model, budget)
        assert plan.nfe == (budget - (budget % 2 == 0) if name == "Heun" else budget)
        assert plan.stochastic == (name in ("DDIM, eta 0.5", "DDIM, eta 1", "DDPM, large variance", "SDE-DPM-Solver++ 2M"))


def test_methods_contain_every_sampler():
    assert {method["sampler"] for method in METHODS.values()} >= set(SAMPLERS)


def rows_of(curves, sd):
    common = {"spacing": "trailing", "fid_sd": sd, "accuracy": 1.0, "seconds": 2.0}
    points = [(name, budget, fid) for name, curve in curves.items() for budget, fid in curve.items()]
    return [{"method": name, "budget": budget, "nfe": budget, "fid": fid, **common} for name, budget, fid in points]


def widths_of(curve, sd=np.nan, final=0.1):
    """Rows of EMA widths: `final`, then those of the curve."""
    common = {"nfe": 20, "fid_sd": sd, "accuracy": 0.98, "seconds": 1.0}
    rows = [{"checkpoint": "final", "width": np.nan, "residual": np.nan, "fid": final}]
    rows += [{"checkpoint": width, "width": width, "residual": 0.01, "fid": fid} for width, fid in curve.items()]
    return [row | common for row in rows]


LONGEST = "with 100 evaluations DDIM, eta 0 has 0.090, and DPM-Solver++ 2M has that from 50 evaluations on, within 0.012"
CURVES = {
    "DDIM, eta 0": {10: 0.5, 20: 0.3, 50: 0.1, 100: 0.09},
    "DDIM, eta 1": {10: 0.6, 20: 0.2, 50: 0.4, 100: 0.01},
    "DPM-Solver++ 2M": {10: 0.2, 20: 0.105, 50: 0.1, 100: 0.1},
}


@pytest.mark.parametrize(
    ("sd", "said"),
    [
        (np.nan, ["is as good with 50 (0.100)."]),
        (0.012, ["is as good with 20 (0.105), within 0.012, the standard deviation over sets of samples.", LONGEST]),
    ],
)
def test_page_states_the_results(workspace, sd, said):
    write_sweep(rows_of(CURVES, sd), widths_of({}), "", 0.08, 500, "digits", {})
    page = Path("reports/sweep/index.md").read_text()
    assert "eta 0 is better than eta 1 at 2 of 3 budgets" in page
    assert "DDIM, eta 0 has an FID of 0.100 with 50 evaluations; DPM-Solver++ 2M " + said[0] in page
    assert all(sentence in page for sentence in said)
    assert ("Both solve the same ODE" in page) == (len(said) == 2)
    assert ("± 0.012" in page) == (sd == 0.012)
    write_sweep(rows_of({**CURVES, "DPM-Solver++ 2M": {10: 5.0}}, sd), widths_of({}), "", 0.08, 500, "digits", {})
    assert "DPM-Solver++ 2M does not reach it" in Path("reports/sweep/index.md").read_text()


@pytest.mark.parametrize(
    ("curve", "sd", "said", "unsaid"),
    [
        (
            {0.05: 0.12, 0.1: 0.08, 0.2: 0.3},
            np.nan,
            ["The best width is 0.1, with an FID of 0.080: better than `final` with 0.100.\n`sample_ddim.checkpoint: 0.1` "],
            ["±", "end of the range", "As good"],
        ),
        (
            {0.05: 0.12, 0.1: 0.08, 0.14: 0.085, 0.2: 0.3},
            0.03,
            [
                "0.080 ± 0.030: as good as `final` with 0.100 ± 0.030.\nAs good within its standard deviation: 0.14.",
                "| 0.2 | 0.300 ± 0.030 | 98.0% | 1.0% |",
            ],
            ["end of the range"],
        ),
        (
            {0.05: 0.2, 0.1: 0.5},
            np.nan,
            ["The best width is 0.05, with an FID of 0.200: worse than `final`", "It is the end of the range"],
            ["s good "],
        ),
    ],
)
def test_page_names_the_best_width(workspace, curve, sd, said, unsaid):
    rows = widths_of(curve, sd)
    write_sweep(rows_of(CURVES, np.nan), rows, "Left out: 0.01.", 0.08, 500, "digits", {})
    section = Path("reports/sweep/index.md").read_text().split("## FID by EMA width")[1]
    assert all(text in section for text in [*said, "Left out: 0.01."]), section
    assert not any(text in section for text in unsaid), section
    assert f"| `final` | {0.1:.3f}" in section
    assert json.loads(Path("reports/sweep/metrics.json").read_text())["ema"]["best_width"] == min(curve, key=curve.get)
