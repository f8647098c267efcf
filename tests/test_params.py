"""params.yaml: the committed file is valid, and every mistake gives one line that says what to do."""

import shutil
from pathlib import Path

import pytest
from conftest import ROOT, edit_params
from pydantic import Field

from ddpm.core import params
from ddpm.core.device import Runtime
from ddpm.core.files import InputError
from ddpm.datasets.registry import DATASETS, DatasetName
from ddpm.datasets.settings import PrepareData
from ddpm.diffusion.prediction import PredictionName
from ddpm.diffusion.schedule import Diffusion, ScheduleName
from ddpm.editing.stage_images import Edit
from ddpm.evaluation.evaluator import Evaluate
from ddpm.evaluation.guidance import Guidance
from ddpm.evaluation.sweep import Sweep
from ddpm.features.classifier import TrainClassifier
from ddpm.networks.registry import NetworkSettings
from ddpm.report.page import Report
from ddpm.sampling.settings import SampleDDIM, SampleDDPM
from ddpm.training.settings import Train

EVERYTHING = {
    "dataset": DatasetName,
    "schedule": ScheduleName,
    "prediction": PredictionName,
    "seed": params.Seed,
    "prepare_data": PrepareData,
    "train_classifier": TrainClassifier,
    "diffusion": Diffusion,
    "model": NetworkSettings,
    "train": Train,
    "sample_ddpm": SampleDDPM,
    "sample_ddim": SampleDDIM,
    "guidance": Guidance,
    "edit": Edit,
    "evaluate": Evaluate,
    "sweep": Sweep,
    "report": Report,
    "runtime": Runtime,
}


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """The committed params.yaml and dvc.yaml in the current folder."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)


def mistake(**edits) -> str:
    """The message for params.yaml with these edits."""
    edit_params(**edits)
    with pytest.raises(InputError) as error:
        params.load(**EVERYTHING)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("params.yaml: ")
    return message.removeprefix("params.yaml: ")


def test_the_committed_file_is_valid_and_every_section_has_a_model(committed):
    raw = params.read_yaml("params.yaml")
    assert set(raw) == set(EVERYTHING)
    p = params.load(**EVERYTHING)
    assert (p.dataset, p.schedule, p.prediction, p.seed) == ("digits", "linear", "v", 0)
    assert p.prepare_data.image_size is None
    assert p.train.learning_rate == raw["train"]["learning_rate"]
    assert p.model.channel_mults == raw["model"]["channel_mults"]
    assert isinstance(p.train.ema_decay, float)


def test_only_the_named_sections_are_read(committed):
    edit_params(**{"train.steps": "wrong"})
    assert params.load(seed=params.Seed).seed == 0


def test_sections_cannot_be_changed_after_reading(committed):
    train = params.load(train=Train).train
    with pytest.raises(ValueError, match="frozen"):
        train.steps = 1


@pytest.mark.parametrize("value", DATASETS)
def test_every_name_that_is_offered_is_valid(committed, value):
    edit_params(dataset=value)
    assert params.load(dataset=DatasetName).dataset == value


def test_words_that_stand_for_no_number(committed):
    p = params.load(**EVERYTHING)
    assert (p.prepare_data.image_size, p.runtime.threads, p.runtime.workers, p.train_classifier.required_accuracy) == (None,) * 4
    edit_params(**{"prepare_data.image_size": 32, "runtime.threads": 2, "train_classifier.required_accuracy": 0.5})
    p = params.load(**EVERYTHING)
    assert (p.prepare_data.image_size, p.runtime.threads, p.train_classifier.required_accuracy) == (32, 2, 0.5)


@pytest.mark.parametrize("text", ["1e-06", "1E-6", "1.0e-6", "1e-6", "+1e-06", ".000001", "0.000001"])
def test_all_spellings_of_a_number_are_numbers(tmp_path, text):
    file = tmp_path / "params.yaml"
    file.write_text(f"rate: {text}\n")
    assert params.read_yaml(file) == {"rate": 1e-6}


@pytest.mark.parametrize(
    ("text", "value"),
    [("5000", 5000), ("-3", -3), ("5000.", 5000.0), ("1e3", 1000.0), ("e3", "e3"), ("1e", "1e"), ("'1e-06'", "1e-06")],
)
def test_other_scalars_keep_their_type(tmp_path, text, value):
    file = tmp_path / "params.yaml"
    file.write_text(f"x: {text}\n")
    read = params.read_yaml(file)["x"]
    assert (read, type(read)) == (value, type(value))


def test_an_edit_by_dvc_changes_one_line_and_is_read(committed):
    from dvc.utils.hydra import apply_overrides

    before = (ROOT / "params.yaml").read_text().splitlines()
    apply_overrides("params.yaml", ["train.learning_rate=1e-6"])
    after = Path("params.yaml").read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 1
    assert "1e-06" in changed[0][1]
    assert params.load(train=Train).train.learning_rate == 1e-6

    apply_overrides("params.yaml", ["model.channel_mults=[1,2,2]", "schedule=cosine", "train.ema_decay=0", "train.flip=true"])
    p = params.load(**EVERYTHING)
    assert (p.model.channel_mults, p.schedule, p.train.ema_decay, p.train.flip) == ([1, 2, 2], "cosine", 0, True)


UNKNOWN = [
    ({"dataset": "digit"}, "dataset: 'digit' is unknown; did you mean 'digits'? Valid: digits, mnist, fashion_mnist"),
    (
        {"schedule": "cosin"},
        "schedule: 'cosin' is unknown; did you mean 'cosine'? Valid: linear, scaled_linear, quadratic, cosine, ",
    ),
    ({"prediction": "epsilon"}, "prediction: 'epsilon' is unknown; did you mean 'eps'? Valid: eps, x0, v"),
    ({"prediction": "zzz"}, "prediction: 'zzz' is unknown; valid: eps, x0, v"),
    ({"dataset": ""}, "dataset: '' is unknown; valid: digits"),
    ({"train.lr_schedule": "cosin"}, "train.lr_schedule: 'cosin' is unknown; did you mean 'cosine'? Valid: constant, cosine"),
    ({"sample_ddim.spacing": "lead"}, "sample_ddim.spacing: 'lead' is unknown; did you mean 'leading'?"),
    ({"sample_ddpm.variance": "medium"}, "sample_ddpm.variance: 'medium' is unknown; valid: small, large"),
    (
        {"evaluate.checkpoint": "last"},
        "evaluate.checkpoint: 'last' is unknown; did you mean 'latest'? Valid: final, best",
    ),
    ({"runtime.precision": "float61"}, "runtime.precision: 'float61' is unknown; did you mean 'float16'?"),
    ({"runtime.device": "gpu"}, "runtime.device: 'gpu' is unknown; did you mean 'cpu'? Valid: auto, cpu, cuda, mps"),
    ({"train.stesp": 5}, "train.stesp: unknown key; did you mean 'steps'? Valid: steps, batch_size, "),
    ({"train.zzz": 5}, "train.zzz: unknown key; valid: steps, batch_size, "),
    ({"model.channel_mult": [1]}, "model.channel_mult: unknown key; did you mean 'channel_mults'?"),
    ({"runtime.thread": 5}, "runtime.thread: unknown key; did you mean 'threads'?"),
    ({"tarin": {}}, "tarin: unknown section; did you mean 'train'? Valid: dataset, "),
    ({"learning_rate": 0.1}, "learning_rate: unknown section; "),
]


@pytest.mark.parametrize(("edits", "expected"), UNKNOWN, ids=lambda x: next(iter(x)) if isinstance(x, dict) else "")
def test_unknown_names_get_the_valid_ones_and_the_nearest(committed, edits, expected):
    assert mistake(**edits).startswith(expected)


WRONG_TYPE = [
    ({"train.steps": 2.0}, "train.steps: 2.0 must be an integer (allowed: >= 1)"),
    ({"train.steps": "many"}, "train.steps: 'many' must be an integer (allowed: >= 1)"),
    ({"train.steps": True}, "train.steps: True must be an integer (allowed: >= 1)"),
    ({"train.steps": None}, "train.steps: None must be an integer (allowed: >= 1)"),
    ({"seed": True}, "seed: True must be an integer"),
    ({"train.learning_rate": True}, "train.learning_rate: True must be a number (allowed: > 0 and <= 1)"),
    ({"train.learning_rate": "fast"}, "train.learning_rate: 'fast' must be a number (allowed: > 0 and <= 1)"),
    ({"train.learning_rate": float("nan")}, "train.learning_rate: nan must be a finite number (allowed: > 0 and <= 1)"),
    ({"train.flip": 1}, "train.flip: 1 must be a boolean"),
    ({"train.flip": "yes"}, "train.flip: 'yes' must be a boolean"),
    ({"dataset": 3}, "dataset: 3 must be a string"),
    ({"dataset": ["digits"]}, "dataset: ['digits'] must be a string"),
    ({"prepare_data.folder": 3}, "prepare_data.folder: 3 must be a string"),
    ({"model.channel_mults": 3}, "model.channel_mults: 3 must be a list"),
    ({"model.attention_levels": ["a"]}, "model.attention_levels.0: 'a' must be an integer"),
    ({"prepare_data.image_size": "nativ"}, "prepare_data.image_size: 'nativ' must be an integer, or 'native'"),
    ({"runtime.workers": 1.5}, "runtime.workers: 1.5 must be an integer, or 'auto'"),
    ({"report": 5}, "report: 5 is no section; write its keys below it: tile, columns, frame_ms"),
    ({"report": None}, "report: None is no section; write its keys below it: tile, columns, frame_ms"),
]


@pytest.mark.parametrize(("edits", "expected"), WRONG_TYPE, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_wrong_types(committed, edits, expected):
    assert mistake(**edits) == expected


OUT_OF_RANGE = [
    ({"seed": -1}, "seed: -1 must be greater than or equal to 0"),
    ({"train.learning_rate": 2}, "train.learning_rate: 2 must be less than or equal to 1 (allowed: > 0 and <= 1)"),
    ({"train.learning_rate": 0}, "train.learning_rate: 0 must be greater than 0 (allowed: > 0 and <= 1)"),
    ({"train.ema_decay": 1.0}, "train.ema_decay: 1.0 must be less than 1 (allowed: >= 0 and < 1)"),
    ({"model.channels": 15}, "model.channels: 15 must be a multiple of 2"),
    ({"model.channel_mults": [1, 0]}, "model.channel_mults.1: 0 must be greater than or equal to 1"),
    ({"model.channel_mults": []}, "model.channel_mults: [] must have at least 1 item"),
    ({"model.dropout": 1}, "model.dropout: 1 must be less than 1"),
    ({"prepare_data.image_size": 0}, "prepare_data.image_size: 0 must be greater than or equal to 1, or 'native'"),
    ({"prepare_data.test_share": 1.0}, "prepare_data.test_share: 1.0 must be less than 1 (allowed: > 0 and < 1)"),
    ({"diffusion.timesteps": 1}, "diffusion.timesteps: 1 must be greater than or equal to 2 (allowed: >= 2 and <= 100000)"),
    ({"runtime.log_seconds": 0}, "runtime.log_seconds: 0 must be greater than 0"),
]


@pytest.mark.parametrize(("edits", "expected"), OUT_OF_RANGE, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_out_of_range(committed, edits, expected):
    assert mistake(**edits).startswith(expected)


@pytest.mark.parametrize("path", ["seed", "train", "train.steps", "runtime.device"])
def test_missing_keys(committed, path):
    assert mistake(**{path: ...}) == f"{path}: missing; add it (the committed params.yaml shows a value)"


def test_without_a_pipeline_unknown_sections_are_not_judged(tmp_path):
    (tmp_path / "params.yaml").write_text("seed: 1\nextra: 2\n")
    assert params.load(tmp_path / "params.yaml", seed=params.Seed).seed == 1


def test_a_rule_of_a_section_speaks_in_one_line(tmp_path):
    def even(value: int) -> int:
        if value % 2:
            raise ValueError("is odd")
        return value

    class Settings(params.Section):
        size: params.Annotated[int, Field(ge=2), params.AfterValidator(even)]

    file = tmp_path / "params.yaml"
    file.write_text("settings:\n  size: 3\n")
    with pytest.raises(InputError, match=r"params\.yaml: settings\.size: 3 is odd$"):
        params.load(file, settings=Settings)


BROKEN = [
    (b"seed: 1\ntrain: ]\nmodel: 2\n", r"line 2: not valid YAML"),
    (b"\tseed: 1\n", r"line 1: not valid YAML \(found character '\\t'"),
    (b"seed: *missing\n", r"line 1: not valid YAML"),
    (b"seed: !!python/object:os.system {}\n", r"line 1: not valid YAML"),
    (b"seed: 2026-13-45\n", r"not valid YAML"),
    (b"seed: \xff\xfe\n", r"not valid YAML"),
    (b"seed: \x00\n", r"not valid YAML"),
    (b"- 1\n- 2\n", r"holds no `key: value` lines"),
    (b"", r"holds no `key: value` lines"),
]


@pytest.mark.parametrize(("content", "expected"), BROKEN)
def test_broken_yaml_names_file_and_line(tmp_path, content, expected):
    file = tmp_path / "params.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"^[^\n]*params\.yaml:? {expected}[^\n]*$"):
        params.load(file, seed=params.Seed)


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(InputError, match=r"params\.yaml: cannot be read \(No such file or directory\); run from the folder"):
        params.load(tmp_path / "params.yaml", seed=params.Seed)


def test_lookup():
    assert params.lookup({"a": 1}, "a", "key") == 1
    with pytest.raises(InputError, match=r"^key: 'lineer' is unknown; did you mean 'linear'\? Valid: linear, cosine$"):
        params.lookup({"linear": 1, "cosine": 2}, "lineer", "key")
