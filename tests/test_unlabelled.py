"""Images without classes: the whole pipeline and the commands, from a flat folder of pictures."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import command_line, edit_params, link_code
from PIL import Image
from sklearn.datasets import load_digits
from test_bad_input import main_of

from ddpm.core.files import read_json, read_npz
from ddpm.data.prepared import open_test

REFUSED = "params.yaml: model.conditioning: class needs classes, but these images have none; set it to none or mask"
OF_CLASSES = {"accuracy", "accuracy_real", "classes", "is"}  # keys of scores
AFTER_TRAINING = ("sample_ddpm", "sample_ddim", "guidance", "edit", "evaluate", "sweep", "report")


@pytest.fixture
def pictures(workspace):
    """A workspace whose data set is a flat folder of the digits."""
    folder = workspace / "raw" / "image_folder"
    folder.mkdir(parents=True)
    for k, image in enumerate(load_digits().images):
        Image.fromarray(np.uint8(image * (255 / 16))).save(folder / f"{k}.png", compress_level=1)
    link_code()
    edit_params(dataset="image_folder", **{"model.conditioning": "none"})


def made(*stages: str) -> None:
    for stage in stages:
        main_of(stage)()


def keys(tree) -> set[str]:
    """Returns the keys of nested dicts and lists."""
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return set(tree if isinstance(tree, dict) else ()).union(*map(keys, inner))


def test_a_network_of_classes_is_refused_once_the_data_is_prepared(pictures, refused, capsys):
    edit_params(**{"model.conditioning": "class"})
    made("prepare_data")
    assert capsys.readouterr().out.endswith("of 8x8x1; no classes, so model.conditioning is to be none or mask\n")
    assert refused(main_of("train_classifier")) == refused(main_of("train")) == REFUSED


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", ["none", "mask"])
def test_commands_of_a_model_without_classes(pictures, error, capsys, conditioning):
    edit_params(**{"model.conditioning": conditioning})
    made("prepare_data", "train")
    assert read_json("models/ddpm/config.json", "")["data"]["class_names"] == []
    capsys.readouterr()
    assert command_line(["info"]) == 0
    assert re.search(r"^classes: +none$", capsys.readouterr().out, re.M)
    for value in ("image", "0", "none"):
        assert error("sample", "--label", value) == "--label: this model takes no class (model.conditioning); leave it out"
    for command in (["sample", "-n", "3", "-o", "a.npz"], ["interpolate", "seed:1", "test:2", "-n", "3", "-o", "a.png"]):
        assert command_line([*command, "--device", "cpu", "--steps", "3"]) == 0
    assert "arr_1" not in read_npz("a.npz", "")


@pytest.mark.slow
def test_no_stage_reports_a_class(pictures):
    """Features of four epochs measure something; the scores of classes, and their figures, are left out."""
    edit_params(**{"train_classifier.epochs": 4, "train.score_every": 2, "train.score_samples": 20})
    made("prepare_data", "train_classifier", "train", *AFTER_TRAINING)
    meta, test = open_test()
    assert (meta["class_names"], meta["counts"], test.labels.any()) == ([], {"train": 1617, "test": 180}, np.False_)
    metrics = read_json("reports/evaluate/metrics.json", "")
    assert (metrics["classifier"]["status"], metrics["classifier"]["trained_on"]) == ("ok", "rotations")
    assert np.isfinite(metrics["ddpm"]["classifier"]["fid"])
    files = [path for folder in ("reports", "samples", "models") for path in Path(folder).rglob("*.json")]
    assert not {path: found for path in files if (found := OF_CLASSES & keys(json.loads(path.read_text())))}
    assert not {"real_labels", "real_seen", "ddpm_asked", "ddpm_seen"} & read_npz("samples/judged/arrays.npz", "").keys()
    assert all("arr_1" not in read_npz(f"samples/{name}.npz", "") for name in ("ddpm", "ddim"))
    assert not {path for path in Path("reports").rglob("*.png") if path.stem in ("classes", "confusion", "guidance")}
    assert pd.read_csv("reports/guidance/guidance.csv").empty
    assert "takes no class" in read_json("reports/guidance/metrics.json", "")["status"]
    scores = pd.read_csv("reports/evaluate/plots/scores.csv")
    assert not OF_CLASSES & set(scores.select_dtypes("object").to_numpy().ravel())
    assert command_line(["export", "--device", "cpu", "--samples", "0", "-o", "exported"]) == 0
    assert "accuracy" not in Path("exported/README.md").read_text()
    pages = "".join(path.read_text() for path in Path("reports").rglob("*.md"))
    sentences = re.findall(r"[^.\n|]*\b[Cc]lass(?:es)?\b[^.\n|]*", pages)
    allowed = ("The images have no classes to tell apart", "Accuracy and Inception Score need classes and are left out")
    assert sentences
    assert all(sentence.strip().startswith(allowed) for sentence in sentences)
