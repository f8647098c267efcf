"""The stage `guidance`: every scale on the same noise, and a line on the reason where none is compared."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import edit_params, input_error

from ddpm.core.files import read_json, write_json
from ddpm.core.weights import weights_id
from ddpm.evaluation.guidance import CAPTIONS, CLASSES, COLUMNS, HELD_OUT_CAPTIONS
from ddpm.sampling.model import load

CSV = Path("reports/guidance/guidance.csv")


def run():
    import_module("stages.guidance").main()
    frame = pd.read_csv(CSV)
    assert tuple(frame.columns) == COLUMNS
    return frame, json.loads(Path("reports/guidance/metrics.json").read_text())


def set_training(**training):
    """Records in models/ddpm how it was trained."""
    config = read_json("models/ddpm/config.json", "train")
    write_json("models/ddpm/config.json", {**config, "training": training})


def make_model(request, **edits):
    edit_params(**edits)
    for name in ("model", "classifier"):
        request.getfixturevalue(name)


def test_guidance_scores_each_scale_at_its_cost(model, classifier):
    set_training(condition_dropout=0.1)
    frame, metrics = run()
    assert frame.method.tolist() == [CLASSES] * 3
    assert frame.scale.tolist() == [0, 1, 2]
    assert frame.nfe.tolist() == [3, 3, 6], "two evaluations per step only where the scale is neither 0 nor 1"
    assert np.isnan(frame.accuracy[0]), "at scale 0 sampling is unconditional"
    assert frame.accuracy[1:].between(0, 1).all()
    assert frame[["fid", "precision", "recall"]].notna().all().all()
    assert metrics["status"] == "ok"
    assert metrics["model"] == weights_id("final", load("final", torch.device("cpu")).network)
    best = metrics["best"][CLASSES]
    assert best["fid"] == pytest.approx(frame.fid[1:].min(), abs=1e-5)
    assert best["scale"] == frame.scale[frame.fid[1:].idxmin()]
    before = CSV.read_bytes()
    run()
    assert CSV.read_bytes() == before, "the same seed gives the same table"


@pytest.mark.parametrize(
    ("edits", "dropout", "setting"),
    [
        ({"guidance.scales": []}, 0.1, "guidance.scales"),
        ({}, 0.0, "train.condition_dropout"),
        ({"model.conditioning": "none"}, 0.1, "model.conditioning"),
        ({"model.conditioning": "mask"}, 0.1, "model.conditioning"),
    ],
)
def test_guidance_records_why_no_scales_are_compared(workspace, edits, dropout, setting, capsys, request):
    make_model(request, **edits)
    set_training(condition_dropout=dropout)
    frame, metrics = run()
    assert frame.empty
    assert setting in metrics["status"]
    assert f"no scales of guidance are compared: {metrics['status']}" in capsys.readouterr().out


def test_guidance_of_a_text_network_also_uses_held_out_captions(workspace, request):
    make_model(request, **{"model.conditioning": "text"})
    set_training(condition_dropout=0.1)
    frame, _ = run()
    rows = list(zip(frame.method, frame.scale, strict=True))
    assert rows == [(CAPTIONS, 0), (CAPTIONS, 1), (CAPTIONS, 2), (HELD_OUT_CAPTIONS, 1), (HELD_OUT_CAPTIONS, 2)]


def test_guidance_refuses_too_few_samples_before_sampling(model, classifier):
    set_training(condition_dropout=0.1)
    edit_params(**{"guidance.samples": 5})
    with input_error("guidance", match=r"at least 6 samples \(guidance.samples\)"):
        run()
