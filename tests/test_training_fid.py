"""FID during a training (train.score_every): its value, the weights that it leaves alone, the choice of `best`, and kills."""

from pathlib import Path

import dvclive  # noqa: F401 (here and below: loaded once, and not in each fork)
import pandas as pd
import pytest
import torch
import torch._dynamo
from conftest import edit_params, error_of, link_code
from processes import at_call, die, in_processes
from test_kills import POINTS, assert_same, attempt, results, same
from test_loggers import read_tensorboard

import ddpm.plots.figures  # noqa: F401
import stages.train
from ddpm.core.files import read_json, write_json
from ddpm.core.paths import CLASSIFIER_DIR, MODEL_DIR
from ddpm.evaluation.training_fid import SAMPLER, SPACING, TrainingFID
from ddpm.features.classifier import load_classifier, predict
from ddpm.features.frechet import fit_gaussian, frechet
from ddpm.sampling.generate import generate_set
from ddpm.sampling.model import load
from ddpm.sampling.plan import make_plan
from ddpm.training.checkpoint import fingerprint, stage_inputs

CPU = torch.device("cpu")
STEPS = [4, 8, 12]
SETTINGS = {
    "train.steps": 12, "train.batch_size": 8, "train.log_every": 3, "train.validate_every": 3, "train.preview_every": 12,
    "train.checkpoint_every": 5, "train.snapshot_every": 40, "train.snapshots": 3, "model.dropout": 0.1,
    "train.score_samples": 30, "train.score_steps": 3,
}  # fmt: skip
SCORED = {"train.score_every": 4, "train.best_by": "fid"}
POINTS["in a score"] = lambda n: at_call(n, TrainingFID, "__call__", die)


def unscored_files(found):
    """The files of a training that scores may not change."""
    return {name: data for name, data in found[0].items() if not any(part in name for part in ("config", "best", "fid"))}


@pytest.mark.slow
def test_scores_change_no_weight_and_survive_kills(classifier, monkeypatch):
    pytest.importorskip("torch.utils.tensorboard")
    monkeypatch.setenv("DDPM_LOGS", "logs")
    link_code()
    edit_params(**SETTINGS)
    assert attempt()[0] == 0
    plain = results()

    edit_params(**SCORED, **{"runtime.loggers": ["tensorboard"]})
    status, output = attempt()
    assert status == 0, output
    assert "scores" in output.splitlines()[-1], "the time by phase"
    scored = results()
    assert unscored_files(scored) == unscored_files(plain)
    parts = ("network", "ema", "tracks", "optimizers", "timesteps")
    assert all(same(scored[1][key], plain[1][key]) for key in parts)

    for point, count, ended in [("in a score", 2, -9), ("by SIGTERM", 4, 143), (None, 1, 0)]:
        status, output = attempt(point, count)
        assert status == ended, output
    assert_same(results(), scored)

    curve = pd.read_csv("reports/train/plots/metrics/fid.tsv", sep="\t")
    assert curve.step.tolist() == STEPS
    (run,) = Path("logs/tensorboard").iterdir()
    curves, _, config, summary = read_tensorboard(run.name)
    assert [step for step, _ in curves["fid"]] == STEPS
    assert [value for _, value in curves["fid"]] == pytest.approx(curve.fid.tolist(), rel=1e-6)
    metrics = read_json("reports/train/metrics.json", "train")
    assert metrics["best_by"] == "fid"
    assert metrics["best_fid"] == scored[1]["best_value"] == curve.fid.min()
    assert summary["results/best_fid"] == pytest.approx(curve.fid.min(), rel=1e-6)
    training = read_json(MODEL_DIR / "config.json", "train")["training"]
    assert training["best_by"] == config["train.best_by"] == "fid"
    sha256 = read_json(CLASSIFIER_DIR / "config.json", "train_classifier")["sha256"]
    assert metrics["classifier_sha256"] == training["classifier_sha256"] == sha256


def test_fingerprint_of_a_scored_training_depends_on_the_classifier(classifier):
    link_code()
    before = fingerprint(stage_inputs("train", TrainingFID.INPUTS))
    assert before != fingerprint(stage_inputs("train"))
    config = read_json(CLASSIFIER_DIR / "config.json", "train_classifier")
    write_json(CLASSIFIER_DIR / "config.json", config | {"accuracy": 0.5})
    assert fingerprint(stage_inputs("train", TrainingFID.INPUTS)) != before


def test_fid_is_the_distance_of_samples_to_training_images(model, classifier, data):
    """In one process and in three, of what the network holds at the call."""
    network = load("final", CPU)
    fid = TrainingFID(network, data, 230, 4, 7)
    plan = make_plan(network, sampler=SAMPLER, spacing=SPACING, steps=4)
    features, _ = load_classifier(data, CPU)

    def expected():
        samples = generate_set(network, plan, 230, 100, 7, "training_fid").arrays["arr_0"]
        sets = (predict(features, images, CPU)[0] for images in (samples, data.train.images))
        return frechet(*map(fit_gaussian, sets))

    first = fid()
    assert first == expected()
    assert in_processes(3, fid) == [first] * 3
    with torch.no_grad():
        for parameter in network.network.parameters():
            parameter.add_(0.1)
    assert fid() == expected() != first


def test_scores_without_a_classifier_are_refused(data, refused):
    link_code()
    edit_params(**SETTINGS, **SCORED)
    line = refused(stages.train.main)
    assert line.startswith("models/classifier/config.json: not found; make it with `dvc repro train_classifier`")
    assert not MODEL_DIR.exists()


def test_scores_by_features_that_measure_nothing_are_refused(model, classifier, data):
    config = read_json(CLASSIFIER_DIR / "config.json", "train_classifier")
    write_json(CLASSIFIER_DIR / "config.json", config | {"status": "nothing is measured"})
    assert error_of(TrainingFID, load("final", CPU), data, 20, 3, 0).key == "train.score_every"
