"""Mistakes in settings and files: the stage ends with exit status 1 and one line that says what to do."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import ROOT, edit, edit_params, link_code, prepared, the_error
from PIL import Image
from safetensors.torch import load_file, save_file

from ddpm.core.files import read_json, write_json
from ddpm.core.stage import run_stage
from ddpm.core.weights import save_weights
from ddpm.datasets.idx import IDX_FILES
from ddpm.features.classifier import Classifier, save_classifier
from ddpm.networks.checkpoints import FORMAT

MODEL = Path("models/ddpm")
CONFIG, WEIGHTS = MODEL / "config.json", MODEL / "final.safetensors"


def main_of(stage: str):
    return import_module(f"stages.{stage}").main


def nothing_was_made() -> bool:
    return not any(Path(name).exists() for name in ("models", "samples", "reports"))


# --- params.yaml, as the stages read it (the rules of each section: test_params.py)


@pytest.mark.parametrize(
    "stage", ["prepare_data", "train", "train_classifier", "sample_ddpm", "sample_ddim", "evaluate", "report"]
)
def test_stage_refuses_params(workspace, refused, stage):
    """Each stage checks all sections before it starts."""
    for key, value in (("trian", {}), ("train.learning_rat", 0.1), ("sample_ddim.eta", 1.5), ("diffusion.cosine.s", ...)):
        shutil.copy("params.yaml", "good.yaml")
        edit_params(**{key: value})
        assert refused(main_of(stage)).startswith(f"params.yaml: {key}: ")
        shutil.move("good.yaml", "params.yaml")
    Path("params.yaml").write_text("seed: [\n")
    assert "not valid YAML" in refused(main_of(stage))
    Path("params.yaml").unlink()
    assert refused(main_of(stage)).startswith("params.yaml: ")
    assert nothing_was_made()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_device_missing(workspace, refused):
    edit_params(**{"runtime.device": "cuda"})
    message = refused(main_of("train"))
    assert message.startswith("params.yaml: runtime.device: 'cuda' ")
    assert message.endswith("set it to 'auto' or 'cpu'")


@pytest.mark.parametrize("names", [["cat", "__"], ["7", "Seven"]], ids=["no word", "same word"])
def test_class_names_without_captions(workspace, refused, names):
    for split, name in itertools.product(("train", "test"), names):
        folder = workspace / "raw" / "image_folder" / split / name
        folder.mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / "0.png")
    edit_params(dataset="image_folder", **{"model.conditioning": "text"})
    prepared()
    message = refused(main_of("train"))
    assert message.startswith(f"class {names[1]!r}: ")
    assert message.endswith("or use another model.conditioning")
    assert nothing_was_made()


# --- data/prepared


def test_prepared_data_of_other_params_or_missing(data, refused):
    edit_params(**{"prepare_data.resize_mode": "resize"})
    stages = ("train", "train_classifier", "evaluate")
    for stage in stages:
        assert refused(main_of(stage)) == (
            "data/prepared: was made with resize_mode = 'pad', but params.yaml has 'resize'; run `dvc repro prepare_data`"
        )
    shutil.rmtree("data")
    for stage in stages:
        assert refused(main_of(stage)) == "data/prepared/meta.json: not found; make it with `dvc repro prepare_data`"


def test_raw_files_damaged(workspace, refused):
    edit_params(dataset="mnist")
    folder = workspace / "raw" / "mnist"
    folder.mkdir(parents=True)
    for name in IDX_FILES.values():
        (folder / name).write_bytes(b"\0\0\x08\x03 and so on")
    assert refused(main_of("prepare_data")).startswith(f"{folder}/train-images-idx3-ubyte: ")

    edit_params(dataset="image_folder")
    pictures = workspace / "raw" / "image_folder"
    assert refused(main_of("prepare_data")).startswith(f"{pictures}: no such folder")
    (pictures / "cat").mkdir(parents=True)
    for i in range(10):
        path = pictures / "cat" / f"{i}.png"
        Image.new("L", (8, 8)).save(path)
    path.write_bytes(b"no picture")
    assert refused(main_of("prepare_data")).startswith(f"{path}: cannot be read as an image")
    Image.new("RGB", (8, 8)).save(path)
    assert "convert all with prepare_data.channels: gray or rgb" in refused(main_of("prepare_data"))
    assert not Path("data/prepared/meta.json").exists()


# --- models


NOT_POSSIBLE = [
    ("sample_ddim", "steps", {"steps": 51}),
    ("sample_ddpm", "variance", {"variance": "learned"}),
    ("sample_ddim", "eta", {"sampler": "heun", "eta": 0.5}),
    ("sample_ddim", "churn", {"sampler": "ab2", "churn": 1.0}),
    ("sample_ddim", "guidance_interval", {"guidance_interval": [0.5, 2.0]}),
    ("sample_ddim", "guidance", {"guidance": 2.0}),
]


@pytest.mark.parametrize(("stage", "key", "edits"), NOT_POSSIBLE, ids=lambda x: x if isinstance(x, str) else "")
def test_sampling_not_possible_with_model(model, refused, stage, key, edits):
    edit_params(**{f"{stage}.{name}": value for name, value in edits.items()})
    assert refused(main_of(stage)).startswith(f"params.yaml: {stage}.{key}: ")
    assert not Path("samples").exists()


def test_guidance_without_class_conditioning(model, refused):
    CONFIG.write_bytes(edited(**{"model.conditioning": "none"}))
    weights = {name: value for name, value in load_file(WEIGHTS).items() if not name.startswith("condition")}
    save_file(weights, WEIGHTS)
    edit_params(**{"sample_ddpm.guidance": 2.0})
    message = refused(main_of("sample_ddpm"))
    assert message.startswith("params.yaml: sample_ddpm.guidance: 2.0 ")
    assert "model.conditioning" in message


def test_samples_not_finite(model, refused):
    weights = load_file(WEIGHTS)
    save_file({**weights, "conv_out.bias": torch.full_like(weights["conv_out.bias"], float("nan"))}, WEIGHTS)
    assert refused(main_of("sample_ddim")).startswith("ddim: images 0 to 19 are not finite; use thresholding 'clip'")
    assert not Path("samples").exists()


def test_schedule_or_loss_weight_impossible(data, refused):
    edit_params(prediction="eps", **{"diffusion.zero_terminal_snr": True})
    assert refused(main_of("train")).startswith("params.yaml: prediction: 'eps' ")
    edit_params(prediction="v", schedule="edm", **{"diffusion.zero_terminal_snr": False, "diffusion.edm.sigma_max": 3.0})
    message = refused(main_of("train"))
    assert message.startswith("params.yaml: schedule: ")
    assert "0.1 at the last of 50 steps" in message
    assert "allow_nonzero_terminal_snr" in message
    assert "diffusion.edm: {'sigma_min': 0.002, 'sigma_max': 3.0, 'rho': 7.0}" in message
    edit_params(**{"train.loss_weight": "v", "train.loss_gamma": 2.0, "diffusion.edm.sigma_max": 80.0})
    assert refused(main_of("train")).startswith("params.yaml: train.loss_gamma: 2.0 ")
    for name in ("simple", "min_snr", "p2"):
        edit_params(**{"train.loss_weight": name, "train.loss_gamma": "auto", "diffusion.zero_terminal_snr": True})
        message = refused(main_of("train"))
        assert message.startswith(f"params.yaml: train.loss_weight: {name!r} ")
        assert message.endswith("use one of x0, v, flow")
    assert nothing_was_made()


def test_model_missing(model, refused):
    edit_params(**{"sample_ddim.checkpoint": "best"})
    assert refused(main_of("sample_ddim")) == "models/ddpm/best.safetensors: not found; make it with `dvc repro train`"
    shutil.rmtree(MODEL)
    for stage in ("sample_ddpm", "sample_ddim"):
        assert refused(main_of(stage)) == "models/ddpm/config.json: not found; make it with `dvc repro train`"


def test_weights_damaged(model, refused):
    good = WEIGHTS.read_bytes()
    for damaged in (b"", good[:100], good[:-1], b"PK\x03\x04" + good, b"\xff" * 8 + good[8:]):
        WEIGHTS.write_bytes(damaged)
        message = refused(main_of("sample_ddim"))
        assert message.startswith(f"{WEIGHTS}: damaged (")
        assert message.endswith("make it again with `dvc repro -f train`")


def test_weights_do_not_fit_config(model, refused):
    weights = load_file(WEIGHTS)
    without = {name: value for name, value in weights.items() if name != "conv_in.weight"}
    for changed, difference in (
        ({**weights, "conv_in.weight": torch.zeros(6, 1, 3, 3)}, "conv_in.weight is (6, 1, 3, 3) in the file, (4, 1, 3, 3) "),
        (without, "conv_in.weight is () in the file, (4, 1, 3, 3) "),
        ({**weights, "extra.weight": torch.zeros(2)}, "extra.weight is (2,) in the file, () "),
    ):
        save_file(changed, WEIGHTS)
        message = refused(main_of("sample_ddim"))
        assert message.startswith(f"{WEIGHTS}: ")
        assert difference in message
        assert "(1 differ)" in message


def edited(**changes) -> bytes:
    """The model's config.json with some entries replaced, by their full path; `...` removes one."""
    return json.dumps(edit(json.loads(CONFIG.read_text()), **changes)).encode()


# The content of config.json, and what the message names in it.
CONFIGS = {
    "cut": (lambda: CONFIG.read_bytes()[:40], "cannot be read"),
    "no JSON": (lambda: b"model: unet", "cannot be read"),
    "list": (lambda: b"[]", "holds no JSON object"),
    "foreign": (lambda: b'{"architectures": ["UNet2DModel"]}', "format None "),
    "earlier format": (lambda: edited(format=FORMAT - 1), f"format {FORMAT - 1} "),
    "later format": (lambda: edited(format=FORMAT + 1), f"format {FORMAT + 1} "),
    "no model": (lambda: edited(model=...), "(model: "),
    "model key": (lambda: edited(**{"model.heads": ...}), "(model.heads: "),
    "model value": (lambda: edited(**{"model.channels": "wide"}), "(model.channels: "),
    "depth": (lambda: edited(**{"model.channel_mults": [1] * 6}), "model.channel_mults: "),
    "no levels": (lambda: edited(diffusion=...), "(diffusion: "),
    "schedule": (lambda: edited(**{"diffusion.schedule": "zzz"}), "(diffusion.schedule: "),
    "prediction": (lambda: edited(**{"diffusion.prediction": "zzz"}), "(diffusion.prediction: "),
    "timesteps": (lambda: edited(**{"diffusion.timesteps": 0}), "(diffusion.timesteps: "),
    "no data": (lambda: edited(data=...), "(data: "),
    "shape": (lambda: edited(**{"data.shape": [8, 8]}), "(data.shape: "),
    "classes": (lambda: edited(**{"data.class_names": []}), "(model.conditioning: class needs classes"),
}


def test_model_config_damaged_or_foreign(model, refused):
    good = CONFIG.read_bytes()
    for name, (content, expected) in CONFIGS.items():
        CONFIG.write_bytes(good)
        CONFIG.write_bytes(content())
        message = refused(main_of("sample_ddim"))
        assert message.startswith(f"{CONFIG}: "), name
        assert expected in message, name
        assert "make it again with `dvc repro" in message, name
    assert not Path("samples").exists()


def test_evaluate_refuses_what_belongs_to_other_data(model, data, refused):
    save_classifier(Classifier(1, 10), data, {"accuracy": 1.0})
    assert refused(main_of("evaluate")) == "samples/ddpm.npz: not found; make it with `dvc repro sample_ddpm`"
    Path("samples").mkdir()
    Path("samples/ddpm.npz").write_bytes(b"PK\x03\x04 and then nothing")
    assert refused(main_of("evaluate")).startswith("samples/ddpm.npz: damaged (")

    CONFIG.write_bytes(edited(**{"data.sha256.train_images": "0" * 64}))
    assert refused(main_of("evaluate")).startswith("models/ddpm: was trained on other data")

    save_weights(Path("models/classifier/classifier.safetensors"), Classifier(1, 10).state_dict())
    assert refused(main_of("evaluate")).startswith("models/classifier/classifier.safetensors: is not the file")
    config = read_json("models/classifier/config.json", "")
    write_json("models/classifier/config.json", {**config, "data": {"dataset": "mnist"}})
    assert refused(main_of("evaluate")).startswith("models/classifier: was trained on other data")


def test_report_without_results(workspace, refused):
    assert refused(main_of("report")).endswith("not found; make it with `dvc repro evaluate`")


# --- places that cannot be written


def test_outputs_below_a_regular_file(model, refused):
    Path("samples").write_text("in the way")
    assert refused(main_of("sample_ddim")) == "samples/ddim.npz: a part of the path is a file, not a folder"
    assert Path("samples").read_text() == "in the way"

    shutil.rmtree("data")
    Path("data").write_text("in the way")
    assert refused(main_of("prepare_data")).endswith("a part of the path is a file, not a folder")


def test_scratch_folder_not_writable(data, refused, monkeypatch):
    Path("scratch").write_text("in the way")
    monkeypatch.setenv("DDPM_SCRATCH", "scratch")
    link_code()
    message = refused(main_of("train"))
    assert message.startswith("scratch/train/")
    assert message.endswith("set DDPM_SCRATCH to another folder")
    assert nothing_was_made()


# --- the process itself


def test_run_stage_keeps_traceback_of_defects():
    with pytest.raises(ZeroDivisionError):
        run_stage(lambda: 1 / 0)


def test_stage_process_prints_one_error_line(workspace):
    edit_params(**{"train.steps": -1})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-m", "stages.train"], env=environment, capture_output=True, text=True)
    message = the_error(done.returncode, done.stdout, done.stderr)
    assert message == "params.yaml: train.steps: -1 must be greater than or equal to 1 (allowed: >= 1 and <= 1000000000)"
    assert done.stdout == ""
