"""The stage `guidance`: every scale on the same noise, and a line that says why where there are none."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import edit_params
from test_sweep import judge  # noqa: F401 (a fixture)

from ddpm.core.files import read_json, write_json
from ddpm.evaluation.guidance import CAPTIONS, CLASSES, COLUMNS, HELD_OUT_CAPTIONS

CSV = Path("reports/guidance/guidance.csv")


def run():
    import_module("stages.guidance").main()
    frame = pd.read_csv(CSV)
    assert tuple(frame.columns) == COLUMNS
    return frame, json.loads(Path("reports/guidance/metrics.json").read_text())


def trained_with(**training):
    """Says of models/ddpm how it was trained."""
    config = read_json("models/ddpm/config.json", "train")
    write_json("models/ddpm/config.json", {**config, "training": training})


def test_each_scale_is_judged_at_its_cost(model, judge):  # noqa: F811
    trained_with(condition_dropout=0.1)
    frame, metrics = run()
    assert frame.method.tolist() == [CLASSES] * 3
    assert frame.scale.tolist() == [0, 1, 2]
    assert frame.nfe.tolist() == [3, 3, 6], "only between and beyond 0 and 1 the network is asked twice"
    assert np.isnan(frame.accuracy[0]), "at scale 0 no class was asked for"
    assert frame.accuracy[1:].between(0, 1).all()
    assert frame[["fid", "precision", "recall"]].notna().all().all()
    assert metrics["status"] == "ok"
    best = metrics["best"][CLASSES]
    assert best["fid"] == pytest.approx(frame.fid[1:].min(), abs=1e-5)
    assert best["scale"] == frame.scale[frame.fid[1:].idxmin()]


def test_the_same_seed_gives_the_same_table(model, judge):  # noqa: F811
    trained_with(condition_dropout=0.1)
    run()
    before = CSV.read_bytes()
    run()
    assert CSV.read_bytes() == before


@pytest.mark.parametrize(
    ("edits", "training", "reason"),
    [
        ({"guidance.scales": []}, {"condition_dropout": 0.1}, "guidance.scales is empty"),
        ({}, {"condition_dropout": 0.0}, "the model was trained without dropped conditioning (train.condition_dropout)"),
    ],
)
def test_where_there_is_no_guidance_it_says_why(model, judge, edits, training, reason, capsys):  # noqa: F811
    edit_params(**edits)
    trained_with(**training)
    frame, metrics = run()
    assert frame.empty
    assert metrics["status"] == reason
    assert f"no scales of guidance are compared: {reason}" in capsys.readouterr().out


def test_too_few_samples_are_named_before_any_is_drawn(model, judge, refused):  # noqa: F811
    trained_with(condition_dropout=0.1)
    edit_params(**{"guidance.samples": 5})
    said = refused(import_module("stages.guidance").main)
    assert said.startswith(
        "guidance: sets of 5 images are too few for 5 neighbours of each; use at least 6 samples (guidance.samples)"
    )


@pytest.mark.parametrize("conditioning", ["none", "mask"])
def test_without_classes_there_is_none(workspace, conditioning, request):
    edit_params(**{"model.conditioning": conditioning})
    for name in ("data", "model", "judge"):
        request.getfixturevalue(name)
    frame, metrics = run()
    assert frame.empty
    assert metrics["status"] == "the model takes no class or text (model.conditioning)"


def test_a_network_that_reads_is_also_asked_with_captions_it_never_saw(workspace, request):
    edit_params(**{"model.conditioning": "text"})
    for name in ("data", "model", "judge"):
        request.getfixturevalue(name)
    trained_with(condition_dropout=0.1)
    frame, _ = run()
    assert list(zip(frame.method, frame.scale, strict=True)) == [
        (CAPTIONS, 0), (CAPTIONS, 1), (CAPTIONS, 2), (HELD_OUT_CAPTIONS, 1), (HELD_OUT_CAPTIONS, 2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ({"guidance.scales": [-1.0]}, "guidance.scales.0: -1.0 must be greater than or equal to 0"),
        ({"guidance.scales": [51.0]}, "guidance.scales.0: 51.0 must be less than or equal to 50"),
        ({"guidance.steps": 0}, "guidance.steps: 0 must be greater than or equal to 1"),
    ],
)
def test_bad_settings_are_named(model, judge, refused, edits, expected):  # noqa: F811
    edit_params(**edits)
    assert expected in refused(import_module("stages.guidance").main)
