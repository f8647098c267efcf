"""Labels of samples that are scored: in the shares of the training split, evenly spread, at every stage that samples."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import edit_params, error_of
from hypothesis import given
from hypothesis import strategies as st

from ddpm.core.files import read_json, read_npz, write_json
from ddpm.core.weights import read_weights
from ddpm.data.images import to_model_range, to_tensor
from ddpm.data.prepared import open_prepared
from ddpm.networks.checkpoints import load_model
from ddpm.networks.power_ema import TRACKED_SIGMA_REL, save_snapshot
from ddpm.sampling import generate as generate_module
from ddpm.sampling.model import class_sequence
from ddpm.sampling.progress import SamplingProgress
from ddpm.sampling.time_grid import denoising_steps

CPU = torch.device("cpu")
CONFIG = Path("models/ddpm/config.json")


def stage(name: str) -> None:
    import_module(f"stages.{name}").main()


def set_counts(counts: object) -> None:
    config = read_json(CONFIG, "train")
    write_json(CONFIG, {**config, "data": config["data"] | {"class_counts": counts}})


class TestClassSequence:
    @given(st.integers(1, 30), st.integers(1, 10**9))
    def test_class_sequence_takes_equal_classes_in_turn(self, classes, images):
        assert class_sequence([images] * classes, 100).tolist() == [k % classes for k in range(100)]

    @given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30).filter(any))
    def test_class_sequence_is_never_a_whole_image_from_the_shares(self, counts):
        """So any batch and any set of samples holds each class to less than two images."""
        sequence, shares = class_sequence(counts, 200), np.array(counts) / sum(counts)
        drawn = np.cumsum(np.eye(len(counts))[sequence], 0)
        assert (np.abs(drawn - shares * np.arange(1, 201)[:, None]) < 1 - 1e-9).all()

    def test_class_sequence_as_long_as_the_data_holds_its_counts(self):
        assert np.bincount(class_sequence([90, 0, 3, 7], 100)).tolist() == [90, 0, 3, 7]


@pytest.fixture
def unequal(data, model, monkeypatch):
    """data/prepared with few of the digits 5 to 9, its classifier, its model, and a sampler that returns held-out images."""
    rng, folder = np.random.default_rng(0), Path("data/prepared")

    def thinned(images, labels):
        kept = (labels < 5) | (np.cumsum(labels >= 5) % 9 == 0)
        return images[kept], labels[kept]

    order = rng.permutation(sum(map(len, (data.train.labels, data.test.labels))))
    images, labels = (np.concatenate(parts)[order] for parts in zip(data.train, data.test, strict=True))
    splits = {"train": thinned(images[:600], labels[:600]), "test": thinned(images[600:1000], labels[600:1000])}
    real_images, real_labels = images[1000:], labels[1000:]
    in_shares, _ = thinned(real_images, real_labels)
    for name, (images, labels) in splits.items():
        np.save(folder / f"{name}_images.npy", images)
        np.save(folder / f"{name}_labels.npy", labels)
    counts = {name: len(labels) for name, (_, labels) in splits.items()}
    write_json(folder / "meta.json", data.meta | {"counts": counts})
    set_counts(open_prepared("digits", data.meta["made_with"]).class_counts)
    config = read_json(CONFIG, "train")
    write_json(CONFIG, config | {"training": {"condition_dropout": 0.1}})
    weights = read_weights(CONFIG.with_name("final.safetensors"), "train")
    save_snapshot(CONFIG.parent, 4, {width: {k: v.clone() for k, v in weights.items()} for width in TRACKED_SIGMA_REL})

    def perfect(model, plan, labels, count, seed=0, batch_size=100, first=0):
        if labels is None:
            chosen = in_shares[(first + np.arange(count)) % len(in_shares)]
        else:
            chosen = np.stack([rng.choice(real_images[real_labels == label]) for label in labels.tolist()])
        x, steps = to_model_range(to_tensor(chosen, CPU)), denoising_steps(plan.grid)
        for done in range(1, steps + 1):
            yield SamplingProgress(done, steps, first, 0.0, x, x, done == steps)

    monkeypatch.setattr(generate_module, "generate", perfect)
    samples = 3 * counts["test"]
    edit_params(**{f"{section}.samples": samples for section in ("sample_ddpm", "sample_ddim", "guidance", "sweep")})
    edit_params(**{"evaluate.training_curve_samples": samples})
    edit_params(**{"sweep.evaluations": [3], "sweep.full_length": False, "train_classifier.epochs": 5})
    stage("train_classifier")


def test_perfect_samples_of_unequal_classes_score_like_the_floor(unequal, capsys):
    for name in ("sample_ddpm", "sample_ddim", "evaluate", "guidance", "sweep"):
        stage(name)
    scores = json.loads(Path("reports/evaluate/metrics.json").read_text())
    floor = scores["ddpm"]["classifier"]["fid_floor"]
    fids = {name: scores[name]["classifier"]["fid"] for name in ("ddpm", "ddim")}
    guidance = pd.read_csv("reports/guidance/guidance.csv")
    fids |= {f"guidance {scale}": fid for scale, fid in zip(guidance.scale, guidance.fid, strict=True)}
    sweep = pd.read_csv("reports/sweep/fid.csv")
    fids |= {f"sweep {name}": fid for name, fid in zip(sweep.method, sweep.fid, strict=True)}
    curve = pd.read_csv("reports/evaluate/plots/training_curve.csv").set_index("method").fid
    assert curve["real test images"] == pytest.approx(floor, abs=1e-5)
    fids["training curve"] = curve["DDIM, 20 steps"]
    assert max(fids.values()) < 1.5 * floor, "drawn in turn, they score three times the floor"
    assert "class counts" not in capsys.readouterr().out


def test_a_model_without_class_counts_draws_the_classes_in_turn_and_says_so(model, capsys):
    stage("sample_ddim")
    assert read_npz("samples/ddim.npz", "")["arr_1"].tolist() == [*range(10)] * 2
    assert sum("class counts" in line for line in capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("counts", [[1], [0] * 10, [-1] * 10, [1.5] * 10, "many", [10**30] * 10])
def test_load_model_refuses_invalid_class_counts(model, counts):
    set_counts(counts)
    error = error_of(load_model, CONFIG.parent, "final", CPU)
    assert error.key == str(CONFIG)
    assert "data.class_counts" in error.message
