"""What a person can get wrong: the stage ends with exit status 1 and one line that says what to do."""

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
from conftest import ROOT, edit, edit_params, prepared, the_error
from PIL import Image
from safetensors.torch import load_file, save_file

from ddpm.core.files import read_json, write_json
from ddpm.core.stage import run_stage
from ddpm.core.weights import save_weights
from ddpm.features.classifier import Classifier, save_classifier

MODEL = Path("models/ddpm")
CONFIG, WEIGHTS = MODEL / "config.json", MODEL / "final.safetensors"


def main_of(stage: str):
    return import_module(f"stages.{stage}").main


def nothing_was_made() -> bool:
    return not any(Path(name).exists() for name in ("models", "samples", "reports"))


# --- params.yaml, seen from the stages

BAD_PARAMS = [
    ("prepare_data", {"dataset": "mnits"}, "dataset: 'mnits' is unknown; did you mean 'mnist'?"),
    ("prepare_data", {"prepare_data.image_size": -8}, "prepare_data.image_size: -8 must be greater than or equal to 1"),
    ("prepare_data", {"prepare_data.image_size": 0}, "prepare_data.image_size: 0 must be greater than or equal to 1"),
    ("prepare_data", {"prepare_data.size": 8}, "prepare_data.size: unknown key; did you mean 'image_size'?"),
    ("prepare_data", {"prepare_data.image_size": 4}, "prepare_data.image_size: 4 is smaller than an image of 8x8"),
    ("train", {"schedule": "cosinus"}, "schedule: 'cosinus' is unknown; did you mean 'cosine'? Valid: linear, scaled_linear"),
    ("train", {"prediction": "noise"}, "prediction: 'noise' is unknown; valid: eps, x0, v, flow"),
    ("train", {"train.learning_rat": 0.1}, "train.learning_rat: unknown key; did you mean 'learning_rate'?"),
    ("train", {"trian": {}}, "trian: unknown section; did you mean 'train'?"),
    ("train", {"train.steps": 0}, "train.steps: 0 must be"),
    ("train", {"train.batch_size": -1}, "train.batch_size: -1 must be"),
    ("train", {"model.channels": 0}, "model.channels: 0 must be"),
    ("train", {"model.channels": -16}, "model.channels: -16 must be"),
    ("train", {"model.channel_mults": [1, -2]}, "model.channel_mults.1: -2 must be"),
    ("train", {"model.blocks_per_level": 0}, "model.blocks_per_level: 0 must be"),
    ("train", {"model.heads": 0}, "model.heads: 0 must be"),
    ("train", {"model.attention_levels": [-1]}, "model.attention_levels.0: -1 must be"),
    ("train", {"diffusion.timesteps": 0}, "diffusion.timesteps: 0 must be"),
    ("train", {"diffusion.cosin": {}}, "diffusion.cosin: unknown key; did you mean 'cosine'?"),
    ("train", {"diffusion.cosine": 0.008}, "diffusion.cosine: 0.008 is no section; write its keys below it: s, max_beta"),
    ("train", {"diffusion.cosine.b": 1.0}, "diffusion.cosine.b: unknown key; valid: s, max_beta"),
    ("train", {"diffusion.cosine.max_beta": 1.0}, "diffusion.cosine.max_beta: 1.0 must be less than 1 (allowed: > 0 and < 1)"),
    ("train", {"diffusion.cosine.s": ...}, "diffusion.cosine.s: missing; add it"),
    ("train", {"diffusion.sigmoid.tau": 0.0}, "diffusion.sigmoid.tau: 0.0 must be greater than or equal to 0.1"),
    ("train", {"diffusion.edm.sigma_max": 1.0e9}, "diffusion.edm.sigma_max: 1000000000.0 must be less than or equal to 100000"),
    ("train", {"diffusion.edm.rho": 0.005}, "diffusion.edm.rho: 0.005 must be greater than or equal to 1"),
    ("train", {"train.condition_dropout": 1.0}, "train.condition_dropout: 1.0 must be less than 1"),
    (
        "train",
        {"model.conditioning": "txt"},
        "model.conditioning: 'txt' is unknown; did you mean 'text'? Valid: none, class, text, mask, class+mask, text+mask",
    ),
    (
        "train",
        {"model.conditioning": "clip"},
        "model.conditioning: 'clip' is unknown; valid: none, class, text, mask, class+mask",
    ),
    ("train", {"model.conditioning": True}, "model.conditioning: True must be a string"),
    (
        "train",
        {"diffusion.sigmoid.end": -4.0},
        "diffusion.sigmoid: {'start': -3.0, 'end': -4.0, 'tau': 1.0} needs start below end",
    ),
    ("train", {"diffusion.edm.sigma_max": 0.001}, "diffusion.edm: {'sigma_min': 0.002, 'sigma_max': 0.001, 'rho': 7.0} needs"),
    ("train", {"diffusion.zero_terminal_snr": 1}, "diffusion.zero_terminal_snr: 1 must be a boolean"),
    ("train", {"train.loss_weight": "minsnr"}, "train.loss_weight: 'minsnr' is unknown; did you mean 'min_snr'?"),
    ("train", {"train.loss_gamma": 0.0}, "train.loss_gamma: 0.0 must be"),
    (
        "train",
        {"train.timestep_sampling": "importanse"},
        "train.timestep_sampling: 'importanse' is unknown; did you mean 'importance'?",
    ),
    ("train_classifier", {"train_classifier.epochs": 0}, "train_classifier.epochs: 0 must be"),
    ("train_classifier", {"train_classifier.batch_size": 1}, "train_classifier.batch_size: 1 must be"),
    ("sample_ddpm", {"sample_ddpm.samples": 0}, "sample_ddpm.samples: 0 must be greater than or equal to 1"),
    ("sample_ddpm", {"sample_ddpm.batch_size": 0}, "sample_ddpm.batch_size: 0 must be"),
    ("sample_ddim", {"sample_ddim.samples": -5}, "sample_ddim.samples: -5 must be"),
    ("sample_ddim", {"sample_ddim.steps": 0}, "sample_ddim.steps: 0 must be greater than or equal to 1"),
    ("sample_ddim", {"sample_ddim.eta": 1.5}, "sample_ddim.eta: 1.5 must be less than or equal to 1 (allowed: >= 0 and <= 1)"),
    (
        "sample_ddim",
        {"sample_ddim.eta": -0.1},
        "sample_ddim.eta: -0.1 must be greater than or equal to 0 (allowed: >= 0 and <= 1)",
    ),
    ("sample_ddim", {"sample_ddim.sampler": "ddmi"}, "sample_ddim.sampler: 'ddmi' is unknown; did you mean 'ddim'?"),
    ("sample_ddim", {"sample_ddim.spacing": "kerras"}, "sample_ddim.spacing: 'kerras' is unknown; did you mean 'karras'?"),
    ("sample_ddim", {"sample_ddim.steps": "every"}, "sample_ddim.steps: 'every' must be an integer, or 'all'"),
    ("sample_ddim", {"sample_ddim.churn": -1.0}, "sample_ddim.churn: -1.0 must be greater than or equal to 0"),
    ("sample_ddim", {"sample_ddim.guidance": -0.5}, "sample_ddim.guidance: -0.5 must be greater than or equal to 0"),
    ("sample_ddim", {"sample_ddim.guidance_interval": [1.0]}, "sample_ddim.guidance_interval: [1.0] must have at least 2 items"),
    ("sample_ddim", {"sample_ddim.guidance_interval": [-1.0, 2.0]}, "sample_ddim.guidance_interval.0: -1.0 must be"),
    (
        "sample_ddpm",
        {"sample_ddpm.thresholding": "dynamik"},
        "sample_ddpm.thresholding: 'dynamik' is unknown; did you mean 'dynamic'?",
    ),
    (
        "sample_ddpm",
        {"sample_ddpm.threshold_quantile": 1.5},
        "sample_ddpm.threshold_quantile: 1.5 must be less than or equal to 1",
    ),
    ("sample_ddpm", {"sample_ddpm.variance": "learnt"}, "sample_ddpm.variance: 'learnt' is unknown; did you mean 'learned'?"),
    ("evaluate", {"evaluate.reconstruction_images": 0}, "evaluate.reconstruction_images: 0 must be"),
    ("report", {"report.tile": 0}, "report.tile: 0 must be"),
]


@pytest.mark.parametrize(("stage", "edits", "expected"), BAD_PARAMS, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_a_mistake_in_params(workspace, refused, stage, edits, expected):
    edit_params(**edits)
    assert refused(main_of(stage)).startswith(f"params.yaml: {expected}")
    assert nothing_was_made()


@pytest.mark.parametrize("stage", ["prepare_data", "train", "sample_ddim", "report"])
def test_params_that_are_missing_or_no_yaml(workspace, refused, stage):
    Path("params.yaml").write_text("seed: [\n")
    assert "not valid YAML" in refused(main_of(stage))
    Path("params.yaml").unlink()
    assert refused(main_of(stage)).startswith("params.yaml: cannot be read")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("stage", ["train", "sample_ddpm", "evaluate"])
def test_a_cuda_device_that_is_not_there(workspace, refused, stage):
    edit_params(**{"runtime.device": "cuda"})
    message = refused(main_of(stage))
    assert message.startswith("params.yaml: runtime.device: 'cuda' was asked for, but this machine has no such device")
    assert message.endswith("set it to 'auto' or 'cpu'")


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ({"model.channel_mults": [1, 1, 1, 1, 1]}, "model.channel_mults: 5 levels halve the image 4 times, so its sides must be "
         "multiples of 16, but they are 8x8; use fewer levels or another prepare_data.image_size"),
        ({"model.attention_levels": [2]}, "model.attention_levels: 2 does not exist; the levels are 0 to 1"),
        ({"model.attention_levels": [1], "model.heads": 3}, "model.heads: 3 does not divide the 8 channels"),
        ({"model.middle_attention": True, "model.heads": 16}, "model.heads: 16 does not divide the 8 channels"),
    ],
    ids=["depth", "level", "heads", "middle"],
)  # fmt: skip
def test_a_network_that_does_not_fit_the_images(data, refused, edits, expected):
    edit_params(**edits)
    assert refused(main_of("train")).startswith(f"params.yaml: {expected}")
    assert nothing_was_made()


def test_the_depth_is_held_against_the_prepared_size(workspace, refused):
    edit_params(**{"prepare_data.image_size": 10, "model.channel_mults": [1, 1, 1]})
    prepared()
    assert "its sides must be multiples of 4, but they are 10x10" in refused(main_of("train"))

    # The height of these fits, the width does not.
    edit_params(dataset="image_folder", **{"prepare_data.image_size": "native"})
    for split in ("train", "test"):
        folder = workspace / "raw" / "image_folder" / split / "cat"
        folder.mkdir(parents=True)
        Image.new("L", (10, 8)).save(folder / "0.png")
    prepared()
    assert "its sides must be multiples of 4, but they are 8x10" in refused(main_of("train"))


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["cat", "__"], "class '__': holds no word that a caption could be made of; rename it, or use another "
         "model.conditioning"),
        (["7", "Seven"], "class 'Seven': would be called 'seven', and so would class '7'; rename one, or use another "
         "model.conditioning"),
    ],
)  # fmt: skip
def test_classes_that_no_captions_can_be_made_of(workspace, refused, folders, expected):
    for split, name in itertools.product(("train", "test"), folders):
        folder = workspace / "raw" / "image_folder" / split / name
        folder.mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / "0.png")
    edit_params(dataset="image_folder", **{"model.conditioning": "text"})
    prepared()
    assert refused(main_of("train")) == expected
    assert nothing_was_made()


# --- data/prepared


@pytest.mark.parametrize("stage", ["train", "train_classifier", "evaluate"])
def test_data_from_other_params_or_none(data, refused, stage):
    edit_params(**{"prepare_data.resize_mode": "resize"})
    message = refused(main_of(stage))
    assert message == "data/prepared: was made with fit = 'pad', but params.yaml has 'resize'; run `dvc repro prepare_data`"
    shutil.rmtree("data")
    assert refused(main_of(stage)) == "data/prepared/meta.json: not found; make it with `dvc repro prepare_data`"


def test_prepare_names_what_is_wrong_with_raw_files(workspace, refused):
    edit_params(dataset="mnist")
    folder = workspace / "raw" / "mnist"
    folder.mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (folder / name).write_bytes(b"\0\0\x08\x03 and so on")
    assert refused(main_of("prepare_data")).startswith(f"{folder}/train-images-idx3-ubyte: ")

    edit_params(dataset="image_folder")
    pictures = workspace / "raw" / "image_folder"
    assert refused(main_of("prepare_data")).startswith(f"{pictures}: no such folder")
    for i in range(10):
        path = pictures / "cat" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    path.write_bytes(b"no picture")
    assert refused(main_of("prepare_data")).startswith(f"{path}: cannot be read as an image")
    Image.new("RGB", (8, 8)).save(path)
    assert "convert all with prepare_data.channels: gray or rgb" in refused(main_of("prepare_data"))
    assert not Path("data/prepared/meta.json").exists()


# --- models


def test_more_ddim_steps_than_the_model_has_levels(model, refused):
    edit_params(**{"sample_ddim.steps": 51})
    message = refused(main_of("sample_ddim"))
    assert message == (
        "params.yaml: sample_ddim.steps: 51 sampling steps are not possible with a model of T = 50 (allowed: 1 to 50)"
    )
    edit_params(**{"sample_ddim.steps": 50})
    main_of("sample_ddim")()
    assert read_json("reports/sample_ddim/metrics.json", "")["nfe"] == 50


SETTINGS_THAT_DO_NOT_FIT_THE_MODEL = [
    (
        "sample_ddpm",
        {"sample_ddpm.variance": "learned"},
        "variance: 'learned' needs a model trained with diffusion.learned_variance",
    ),
    (
        "sample_ddim",
        {"sample_ddim.sampler": "heun", "sample_ddim.eta": 0.5},
        "eta: 0.5 has no meaning for sampler 'heun', only for ddim",
    ),
    ("sample_ddim", {"sample_ddim.sampler": "ab2", "sample_ddim.churn": 1.0}, "churn: 1.0 would make sampler 'ab2' forget"),
    (
        "sample_ddim",
        {"sample_ddim.guidance_interval": [0.5, 2.0]},
        "guidance_interval: [0.5, 2.0] has no meaning without guidance",
    ),
    ("sample_ddim", {"sample_ddim.guidance": 2.0}, "guidance: 2.0 needs a model that was also trained without its class"),
]


@pytest.mark.parametrize(("stage", "edits", "expected"), SETTINGS_THAT_DO_NOT_FIT_THE_MODEL)
def test_settings_that_do_not_fit_the_model(model, refused, stage, edits, expected):
    edit_params(**edits)
    assert refused(main_of(stage)).startswith(f"params.yaml: {stage}.{expected}")
    assert not Path("samples").exists()


def test_a_guidance_interval_that_ends_before_it_starts(model, refused):
    CONFIG.write_bytes(edited(**{"training.condition_dropout": 0.1}))
    edit_params(**{"sample_ddim.guidance": 2.0, "sample_ddim.guidance_interval": [3.0, 1.0]})
    expected = (
        "params.yaml: sample_ddim.guidance_interval: [3.0, 1.0] ends before it starts; give [lowest, highest] sigma / alpha"
    )
    assert refused(main_of("sample_ddim")) == expected


def test_images_that_are_not_finite(model, refused):
    weights = load_file(WEIGHTS)
    save_file({**weights, "conv_out.bias": torch.full_like(weights["conv_out.bias"], float("nan"))}, WEIGHTS)
    assert refused(main_of("sample_ddim")).startswith("ddim: images 0 to 19 are not finite; use thresholding 'clip'")
    assert not Path("samples").exists()


def test_guidance_of_a_model_without_classes(model, refused):
    CONFIG.write_bytes(edited(**{"model.conditioning": "none"}))
    weights = {name: value for name, value in load_file(WEIGHTS).items() if not name.startswith("condition")}
    save_file(weights, WEIGHTS)
    edit_params(**{"sample_ddpm.guidance": 2.0})
    assert "sample_ddpm.guidance: 2.0 needs a model that takes a class" in refused(main_of("sample_ddpm"))


def test_schedules_that_cannot_be_trained_on(data, refused):
    edit_params(prediction="eps", **{"diffusion.zero_terminal_snr": True})
    assert refused(main_of("train")).startswith("params.yaml: prediction: 'eps' is impossible with diffusion.zero_terminal_snr")
    edit_params(prediction="v", schedule="edm", **{"diffusion.zero_terminal_snr": False, "diffusion.edm.sigma_max": 3.0})
    message = refused(main_of("train"))
    assert message.startswith("params.yaml: schedule: alpha_bar is still 0.1 at the last of 50 steps (allowed: at most 0.01)")
    assert message.endswith("(diffusion.edm: {'sigma_min': 0.002, 'sigma_max': 3.0, 'rho': 7.0})")
    assert "diffusion.allow_nonzero_terminal_snr" in message
    edit_params(**{"train.loss_weight": "v", "train.loss_gamma": 2.0, "diffusion.edm.sigma_max": 80.0})
    assert refused(main_of("train")).startswith("params.yaml: train.loss_gamma: 2.0 has no meaning for loss_weight 'v'")
    for name in ("simple", "min_snr", "p2"):
        edit_params(**{"train.loss_weight": name, "train.loss_gamma": "auto", "diffusion.zero_terminal_snr": True})
        message = refused(main_of("train"))
        assert message.startswith(f"params.yaml: train.loss_weight: {name!r} is 0 at a level without signal")
        assert message.endswith("use one of x0, v, flow")
    assert nothing_was_made()


@pytest.mark.parametrize("stage", ["sample_ddpm", "sample_ddim"])
def test_no_model(workspace, refused, stage):
    assert refused(main_of(stage)) == "models/ddpm/config.json: not found; make it with `dvc repro train`"


def test_no_weights_for_the_chosen_checkpoint(model, refused):
    edit_params(**{"sample_ddim.checkpoint": "best"})
    assert refused(main_of("sample_ddim")) == "models/ddpm/best.safetensors: not found; make it with `dvc repro train`"


DAMAGE = {
    "empty": lambda good: b"",
    "header cut": lambda good: good[:100],
    "last byte": lambda good: good[:-1],
    "other file": lambda good: b"PK\x03\x04" + good,
    "huge header": lambda good: b"\xff" * 8 + good[8:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights(model, refused, damage):
    WEIGHTS.write_bytes(DAMAGE[damage](WEIGHTS.read_bytes()))
    message = refused(main_of("sample_ddim"))
    assert message.startswith(f"{WEIGHTS}: damaged (")
    assert message.endswith("make it again with `dvc repro -f train`")


def test_weights_that_do_not_fit_their_config(model, refused):
    weights = load_file(WEIGHTS)
    cases = {
        "another width": {**weights, "conv_in.weight": torch.zeros(6, 1, 3, 3)},
        "one missing": {name: value for name, value in weights.items() if name != "conv_in.weight"},
        "one too many": {**weights, "extra.weight": torch.zeros(2)},
    }
    expected = {
        "another width": r"conv_in.weight is (6, 1, 3, 3) in the file, (4, 1, 3, 3) by the config (1 differ)",
        "one missing": r"conv_in.weight is () in the file, (4, 1, 3, 3) by the config (1 differ)",
        "one too many": r"extra.weight is (2,) in the file, () by the config (1 differ)",
    }
    for name, changed in cases.items():
        save_file(changed, WEIGHTS)
        message = refused(main_of("sample_ddim"))
        assert message.startswith(f"{WEIGHTS}: does not fit the config beside it: {expected[name]}")


def edited(**changes) -> bytes:
    """The model's config.json with some entries replaced, by their full path; `...` removes one."""
    return json.dumps(edit(json.loads(CONFIG.read_text()), **changes)).encode()


CONFIGS = {
    "cut": (lambda: CONFIG.read_bytes()[:40], "cannot be read"),
    "no JSON": (lambda: b"model: unet", "cannot be read"),
    "list": (lambda: b"[]", "holds no JSON object"),
    "foreign": (lambda: b'{"architectures": ["UNet2DModel"]}', "format None is not 5"),
    "earlier format": (lambda: edited(format=4), "format 4 is not 5"),
    "later format": (lambda: edited(format=6), "format 6 is not 5"),
    "no model": (lambda: edited(model=...), "describes no network (model: Field required)"),
    "model key": (lambda: edited(**{"model.heads": ...}), "describes no network (model.heads: Field required)"),
    "model value": (lambda: edited(**{"model.channels": "wide"}), "describes no network (model.channels: "),
    "depth": (lambda: edited(**{"model.channel_mults": [1] * 6}), "describes no network (params.yaml: model.channel_mults: "),
    "no levels": (lambda: edited(diffusion=...), "describes no network (diffusion: Field required)"),
    "schedule": (lambda: edited(**{"diffusion.schedule": "zzz"}), "describes no network (diffusion.schedule: is unknown)"),
    "prediction": (lambda: edited(**{"diffusion.prediction": "zzz"}), "describes no network (diffusion.prediction: is unknown)"),
    "timesteps": (lambda: edited(**{"diffusion.timesteps": 0}), "describes no network (diffusion.timesteps: "),
    "no data": (lambda: edited(data=...), "describes no network (data: Field required)"),
    "shape": (lambda: edited(**{"data.shape": [8, 8]}), "describes no network (data.shape: "),
    "classes": (lambda: edited(**{"data.class_names": []}), "describes no network (data.class_names: "),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_is_damaged_or_foreign(model, refused, name):
    content, expected = CONFIGS[name]
    CONFIG.write_bytes(content())
    message = refused(main_of("sample_ddim"))
    assert message.startswith(f"{CONFIG}: {expected}")
    assert "make it again with `dvc repro" in message
    assert not Path("samples").exists()


def test_a_model_of_other_data(model, data, refused):
    save_classifier(Classifier(1, 10), data, 1.0)
    CONFIG.write_bytes(edited(**{"data.sha256.train_images": "0" * 64}))
    message = refused(main_of("evaluate"))
    assert message == "models/ddpm: was trained on other data than data/prepared holds; run `dvc repro train`"


def test_a_judge_of_other_data_or_with_other_weights(model, data, refused):
    save_classifier(Classifier(1, 10), data, 1.0)
    save_weights(Path("models/classifier/classifier.safetensors"), Classifier(1, 10).state_dict())
    assert "classifier.safetensors: is not the file that config.json names" in refused(main_of("evaluate"))
    config = read_json("models/classifier/config.json", "")
    write_json("models/classifier/config.json", {**config, "data": {"dataset": "mnist"}})
    assert refused(main_of("evaluate")).startswith("models/classifier: was trained on other data than data/prepared holds")


def test_damaged_samples(model, data, refused):
    save_classifier(Classifier(1, 10), data, 1.0)
    assert refused(main_of("evaluate")) == "samples/ddpm.npz: not found; make it with `dvc repro sample_ddpm`"
    Path("samples").mkdir()
    Path("samples/ddpm.npz").write_bytes(b"PK\x03\x04 and then nothing")
    assert refused(main_of("evaluate")).startswith("samples/ddpm.npz: damaged (")


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


def test_training_state_that_cannot_be_written(data, refused, monkeypatch):
    Path("scratch").write_text("in the way")
    monkeypatch.setenv("DDPM_SCRATCH", "scratch")
    for dependency in ("ddpm", "stages"):
        os.symlink(ROOT / dependency, dependency)
    message = refused(main_of("train"))
    assert message.startswith("scratch/train/")
    assert message.endswith("cannot be written (Not a directory); set DDPM_SCRATCH to another folder")
    assert nothing_was_made()


# --- the process itself


def test_a_defect_of_the_code_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_stage(lambda: 1 / 0)


def run(stage: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-m", f"stages.{stage}"], env=environment, capture_output=True, text=True)


def test_a_stage_started_as_dvc_starts_it(workspace):
    edit_params(**{"train.steps": -1})
    done = run("train")
    message = the_error(done.returncode, done.stdout, done.stderr)
    assert message == "params.yaml: train.steps: -1 must be greater than or equal to 1 (allowed: >= 1)"
    assert done.stdout == ""
