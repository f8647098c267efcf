"""params.yaml: the committed file is valid, and every mistake gives one line that says what to do."""

import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT, edit, edit_params, error_of
from pydantic import Field, TypeAdapter

from ddpm.core import params
from ddpm.core.files import InputError
from ddpm.experiments import all_params
from ddpm.experiments.all_params import KINDS, check_params
from ddpm.networks.unet import UNetSettings
from ddpm.training.settings import Train


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """The committed params.yaml and dvc.yaml in the current folder."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)


def mistake(**edits) -> InputError:
    """The error for params.yaml with these edits."""
    edit_params(**edits)
    error = error_of(params.load, **KINDS)
    assert "\n" not in str(error)
    assert error.where == "params.yaml"
    return error


def test_load_committed_file(committed):
    raw = params.read_yaml("params.yaml")
    assert set(raw) == set(KINDS)
    p = params.load(**KINDS)
    assert (p.dataset, p.schedule, p.prediction, p.seed) == ("digits", "linear", "v", 0)
    assert p.prepare_data.image_size is None
    assert p.train.learning_rate == raw["train"]["learning_rate"]
    assert p.model.channel_mults == raw["model"]["channel_mults"]
    assert isinstance(p.train.ema_decay, float)


def test_load_reads_named_sections_only(committed):
    edit_params(**{"train.steps": "wrong"})
    assert params.load(seed=params.Seed).seed == 0


def test_sections_are_frozen(committed):
    train = params.load(train=Train).train
    with pytest.raises(ValueError, match="frozen"):
        train.steps = 1


def test_or_word_reads_none(committed):
    p = params.load(**KINDS)
    assert (p.prepare_data.image_size, p.runtime.threads, p.runtime.workers, p.train_classifier.required_accuracy) == (None,) * 4
    edit_params(**{"prepare_data.image_size": 32, "runtime.threads": 2, "train_classifier.required_accuracy": 0.5})
    p = params.load(**KINDS)
    assert (p.prepare_data.image_size, p.runtime.threads, p.train_classifier.required_accuracy) == (32, 2, 0.5)


@pytest.mark.parametrize("text", ["1e-06", "1E-6", "1.0e-6", "1e-6", "+1e-06", ".000001", "0.000001"])
def test_read_yaml_float_spellings(tmp_path, text):
    file = tmp_path / "params.yaml"
    file.write_text(f"rate: {text}\n")
    assert params.read_yaml(file) == {"rate": 1e-6}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5000", 5000),
        ("-3", -3),
        ("5000.", 5000.0),
        ("1e3", 1000.0),
        ("e3", "e3"),
        ("1e", "1e"),
        ("'1e-06'", "1e-06"),
        ("010", 10),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2026-13-45", "2026-13-45"),
        ("yes", "yes"),
        ("True", True),
        ("", None),
        ("-.inf", float("-inf")),
    ],
)
def test_read_yaml_follows_yaml_1_2(tmp_path, text, value):
    file = tmp_path / "params.yaml"
    file.write_text(f"x: {text}\n")
    assert repr(params.read_yaml(file)["x"]) == repr(value)


def test_edit_by_dvc_changes_one_line_and_is_read(committed):
    from dvc.utils.hydra import apply_overrides

    before = (ROOT / "params.yaml").read_text().splitlines()
    apply_overrides("params.yaml", ["train.learning_rate=1e-6"])
    after = Path("params.yaml").read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 1
    assert "1e-06" in changed[0][1]
    assert "#" in changed[0][1]
    assert params.load(train=Train).train.learning_rate == 1e-6

    apply_overrides(
        "params.yaml", ["model.channel_mults=[1,2,2]", "schedule=cosine", "train.ema_decay=0", "sample_ddim.checkpoint=0.1"]
    )
    p = params.load(**KINDS)
    assert (p.model.channel_mults, p.schedule, p.train.ema_decay, p.sample_ddim.checkpoint) == ([1, 2, 2], "cosine", 0, 0.1)


PINNED = [
    ({"dataset": "digit"}, "dataset: 'digit' is unknown; did you mean 'digits'? Valid: digits, mnist, fashion_mnist"),
    ({"prediction": "zzz"}, "prediction: 'zzz' is unknown; valid: eps, x0, v"),
    ({"train.stesp": 5}, "train.stesp: unknown key; did you mean 'steps'? Valid: steps, batch_size, "),
    ({"train.steps": ..., "train.stepz": 5}, "train.stepz: unknown key; did you mean 'steps'?"),
    ({"train.zzz": 5}, "train.zzz: unknown key; valid: steps, batch_size, "),
    ({"tarin": {}}, "tarin: unknown section; did you mean 'train'? Valid: dataset, "),
    ({"learning_rate": 0.1}, "learning_rate: unknown section; "),
    ({"train.steps": 2.0}, "train.steps: 2.0 must be an integer (allowed: >= 1 and <= 1000000000)"),
    ({"prepare_data.image_size": "nativ"}, "prepare_data.image_size: 'nativ' is no size; give a side"),
    ({"report": 5}, "report: 5 is no section; write its keys below it: tile, columns, frame_ms"),
    ({"train.learning_rate": 2}, "train.learning_rate: 2 must be less than or equal to 1 (allowed: > 0 and <= 1)"),
    ({"train.steps": ...}, "train.steps: missing; add it (the committed params.yaml shows a value)"),
    (
        {"train.best_by": "fid"},
        "train.best_by: 'fid' is never measured, since train.score_every is 0; set that to a number of steps",
    ),
]


@pytest.mark.parametrize(("edits", "expected"), PINNED, ids=lambda x: next(iter(x)) if isinstance(x, dict) else "")
def test_load_message(committed, edits, expected):
    error = mistake(**edits)
    assert f"{error.key}: {error.message}".startswith(expected)


UNKNOWN_NAMES = [
    {"schedule": "cosin"}, {"prediction": "epsilon"}, {"dataset": ""}, {"train.lr_schedule": "cosin"},
    {"sample_ddim.spacing": "lead"}, {"sample_ddim.sampler": "ddmi"}, {"sample_ddpm.variance": "medium"},
    {"sample_ddpm.thresholding": "dynamik"}, {"evaluate.checkpoint": "last"}, {"model.conditioning": "txt"},
    {"train.loss_weight": "minsnr"}, {"train.timestep_sampling": "importanse"}, {"runtime.precision": "float61"},
    {"runtime.device": "gpu"}, {"train.init_checkpoint": "last"},
]  # fmt: skip
UNKNOWN_KEYS = [
    {"prepare_data.size": 8}, {"model.channel_mult": [1]}, {"runtime.thread": 5}, {"diffusion.cosin": {}},
    {"diffusion.cosine.b": 1.0},
]  # fmt: skip
WRONG_TYPE = [
    {"train.steps": "many"}, {"train.steps": True}, {"train.steps": None}, {"seed": True}, {"train.learning_rate": True},
    {"train.learning_rate": "fast"}, {"train.learning_rate": float("nan")}, {"train.flip": 1}, {"train.flip": "yes"},
    {"dataset": 3}, {"dataset": ["digits"]}, {"prepare_data.folder": 3}, {"model.channel_mults": 3}, {"runtime.workers": 1.5},
    {"model.conditioning": True}, {"diffusion.zero_terminal_snr": 1}, {"sample_ddim.steps": "every"}, {"report": None},
    {"diffusion.cosine": 0.008}, {"runtime.loggers": "wandb"}, {"train.continue": "yes"}, {"train.init": 3},
]  # fmt: skip
OUT_OF_RANGE = [
    {"seed": -1}, {"prepare_data.image_size": 0}, {"prepare_data.image_size": -8},
    {"prepare_data.image_size": [8, 0]}, {"prepare_data.test_share": 1.0},
    {"train_classifier.epochs": 0}, {"train_classifier.batch_size": 1},
    {"diffusion.timesteps": 1}, {"diffusion.cosine.max_beta": 1.0}, {"diffusion.sigmoid.tau": 0.0},
    {"diffusion.edm.sigma_max": 1.0e9}, {"diffusion.edm.rho": 0.005},
    {"seed": 10**20}, {"train.steps": 10**20}, {"train.max_nonfinite_skips": 10**20}, {"train.gradient_clip": 1e-300},
    {"train.snapshots": 10**9}, {"train.loss_gamma": 1e300}, {"train.loss_gamma": 5e-324}, {"guidance.scales": [0.0] * 101},
    {"sweep.evaluations": [5] * 101}, {"sweep.ema_widths": [0.1] * 101}, {"train_classifier.max_shift": 10**6},
    {"evaluate.likelihood_images": 10**20}, {"evaluate.likelihood_levels": 10**6}, {"runtime.threads": 10**20},
    {"model.channels": 100_000}, {"model.time_embedding": 10**9}, {"model.blocks_per_level": 3000}, {"model.heads": 10**6},
    {"model.channel_mults": [1] * 13},
    {"model.channels": 0}, {"model.channels": -16}, {"model.channels": 15}, {"model.channel_mults": []},
    {"model.blocks_per_level": 0}, {"model.heads": 0}, {"model.dropout": 1},
    {"train.steps": 0}, {"train.batch_size": -1}, {"train.learning_rate": 0}, {"train.ema_decay": 1.0},
    {"train.condition_dropout": 1.0}, {"train.augment": 1.0}, {"train.loss_gamma": 0.0},
    {"sample_ddpm.samples": 0}, {"sample_ddpm.batch_size": 0}, {"sample_ddpm.threshold_quantile": 1.5},
    {"sample_ddim.samples": -5}, {"sample_ddim.steps": 0}, {"sample_ddim.eta": 1.5}, {"sample_ddim.eta": -0.1},
    {"sample_ddim.churn": -1.0}, {"sample_ddim.guidance": -0.5}, {"sample_ddim.guidance_interval": [1.0]},
    {"evaluate.reconstruction_images": 0}, {"evaluate.training_curve": -1}, {"evaluate.training_curve_samples": 1},
    {"sweep.ema_widths": 0.1}, {"sweep.ema_steps": 0}, {"guidance.steps": 0},
    *({f"edit.{key}": 0} for key in ("steps", "repaint_jump_length", "repaint_resamples", "scored_images")),
    {"edit.images": 65}, {"edit.film_frames": -1},
    {"report.tile": 0}, {"runtime.log_seconds": 0}, {"runtime.kept_states": -1}, {"train.cooldown_steps": 0},
]  # fmt: skip


@pytest.mark.parametrize("rows", [UNKNOWN_NAMES, UNKNOWN_KEYS, WRONG_TYPE, OUT_OF_RANGE], ids=["name", "key", "type", "range"])
def test_load_names_the_wrong_key(tmp_path, monkeypatch, rows):
    good = params.read_yaml(ROOT / "params.yaml")
    for edits in rows:
        tree = edit(deepcopy(good), **edits)
        monkeypatch.setattr(params, "read_yaml", lambda path: tree)  # noqa: B023
        assert error_of(params.load, tmp_path / "params.yaml", **KINDS).key == next(iter(edits))


def unbounded(schema, definitions, path):
    """Yields the paths of numbers in a JSON schema that lack a bound."""
    if isinstance(schema, list):
        schema = dict(enumerate(schema))
    if isinstance(schema, dict):
        schema = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        words = " ".join(map(str, schema))
        if schema.get("type") in ("integer", "number") and ("inimum" not in words or "aximum" not in words):
            yield path
        for key, value in schema.items():
            if key != "$defs":
                yield from unbounded(value, definitions, path if key in ("properties", "anyOf", "items") else f"{path}.{key}")


def test_every_number_has_bounds():
    found = []
    for name, kind in KINDS.items():
        if name != "model":  # whose class depends on its type
            schema = TypeAdapter(kind).json_schema()
            found += unbounded(schema, schema.get("$defs", {}), name)
    schema = UNetSettings.model_json_schema()
    assert [*found, *unbounded(schema, schema.get("$defs", {}), "model")] == ["prepare_data.value_range.0"]  # any pixel value


@pytest.mark.parametrize(
    ("key", "edits"),
    [
        ("model.channel_mults.1", {"model.channel_mults": [1, 0]}),
        ("model.attention_levels.0", {"model.attention_levels": ["a"]}),
        ("sweep.ema_widths.1", {"sweep.ema_widths": [0.1, 0.3]}),
        ("sweep.ema_widths.0", {"sweep.ema_widths": [0.001]}),
        ("guidance.scales.0", {"guidance.scales": [-1.0]}),
        ("guidance.scales.0", {"guidance.scales": [51.0]}),
        ("sample_ddim.guidance_interval.0", {"sample_ddim.guidance_interval": [-1.0, 2.0]}),
        ("runtime.loggers.0", {"runtime.loggers": ["tensorbord"]}),
        ("diffusion.sigmoid", {"diffusion.sigmoid.end": -4.0}),  # below its start
        ("diffusion.edm", {"diffusion.edm.sigma_max": 0.001}),  # below sigma_min
    ],
)
def test_load_names_the_item_or_section(committed, key, edits):
    assert mistake(**edits).key == key


@pytest.mark.parametrize("path", ["seed", "train", "runtime.device", "diffusion.cosine.s"])
def test_load_missing_key(committed, path):
    assert mistake(**{path: ...}).key == path


def test_load_accepts_unknown_sections_without_dvc_yaml(tmp_path):
    (tmp_path / "params.yaml").write_text("seed: 1\nextra: 2\n")
    assert params.load(tmp_path / "params.yaml", seed=params.Seed).seed == 1


def test_load_message_of_a_validator(tmp_path):
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
    (b"seed: 1\nseed: 2\n", r"line 2: not valid YAML \('seed' is given twice\)"),
    (b"train: {steps: 1, steps: 2}\n", r"line 1: not valid YAML \('steps' is given twice\)"),
    (b"seed: !!int x\n", r"line 1: not valid YAML \('x' cannot be read as int\)"),
    (b"seed: !!bool x\n", r"line 1: not valid YAML"),
    (b"seed: !!timestamp x\n", r"line 1: not valid YAML"),
    (b"seed: &a [*a]\n", r"line 1: not valid YAML"),
    (b"seed: &a {b: *a}\n", r"line 1: not valid YAML"),
    (b"seed: " + b"[" * 5000, r"not valid YAML \(nested too deep\)"),
    (b"seed: " + b"1" * 5000, r"line 1: not valid YAML"),
    (b'seed: "\\UFFFFFFFF"\n', r"not valid YAML"),
    (b"seed: \xff\xfe\n", r"not valid YAML"),
    (b"seed: \x00\n", r"not valid YAML"),
    (b"- 1\n- 2\n", r"holds no `key: value` lines"),
    (b"", r"holds no `key: value` lines"),
]


@pytest.mark.parametrize(("content", "expected"), BROKEN, ids=range(len(BROKEN)))
def test_read_yaml_broken_file_names_line(tmp_path, content, expected):
    file = tmp_path / "params.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"^[^\n]*params\.yaml:? {expected}[^\n]*$"):
        params.load(file, seed=params.Seed)


def test_read_yaml_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"params\.yaml: cannot be read \(No such file or directory\); run from the folder"):
        params.load(tmp_path / "params.yaml", seed=params.Seed)


def test_lookup_unknown_name():
    assert params.lookup({"a": 1}, "a", "key") == 1
    with pytest.raises(InputError, match=r"^key: 'lineer' is unknown; did you mean 'linear'\? Valid: linear, cosine$"):
        params.lookup({"linear": 1, "cosine": 2}, "lineer", "key")


TOGETHER = [
    ("sample_ddim.guidance", {"model.conditioning": "none", "sample_ddim.guidance": 2.0}),
    ("sample_ddpm.guidance", {"train.condition_dropout": 0.0, "sample_ddpm.guidance": 0.0}),
    ("sample_ddpm.variance", {"sample_ddpm.variance": "learned"}),
    ("sample_ddim.steps", {"diffusion.timesteps": 40}),
    ("edit.checkpoint", {"edit.checkpoint": 0.005, "train.snapshots": 2}),
    ("evaluate.checkpoint", {"evaluate.checkpoint": 0.1, "train.snapshots": 0}),
    ("sweep.checkpoint", {"sweep.checkpoint": 0.005, "train.snapshots": 2}),
    ("model.channel_mults", {"prepare_data.image_size": 10, "model.channel_mults": [1, 2, 2]}),
    ("model.attention_levels", {"model.attention_levels": [2]}),
    ("model.heads", {"model.attention_levels": [1], "model.heads": 3}),
    ("sample_ddim.guidance_interval", {"sample_ddim.guidance": 2.0, "sample_ddim.guidance_interval": [3.0, 1.0]}),
    ("prediction", {"prediction": "eps", "diffusion.zero_terminal_snr": True}),
    ("schedule", {"diffusion.edm.sigma_max": 1.0, "schedule": "edm"}),
    ("train.batch_size", {"train.gradient_accumulation": 129}),
    ("train.lr_schedule", {"train.continue": True}),
    ("model", {"model.channels": 8192, "model.channel_mults": [64]}),
    ("guidance.samples", {"guidance.samples": 5}),
    ("guidance.scalez", {"guidance.scalez": 1}),
    ("report.tile", {"report.tile": "big"}),
    ("model.conditioning", {"dataset": "image_folder", "prepare_data.label": "none"}),
]


def test_check_params_of_sections_together(committed):
    check_params()
    good = Path("params.yaml").read_text()
    for key, edits in TOGETHER:
        Path("params.yaml").write_text(good)
        edit_params(**edits)
        error = error_of(check_params)
        assert (error.key, error.where) == (key, "params.yaml"), error


def test_check_params_of_prepared_data(committed, monkeypatch):
    """The sections are checked against the data where these are those of params.yaml."""
    data = SimpleNamespace(shape=(10, 10, 1), class_names=["a"], test=SimpleNamespace(images=[0] * 4))
    monkeypatch.setattr(all_params, "open_prepared", lambda dataset, settings: data)
    error = error_of(check_params)
    assert error.key == "prepare_data.test_share"
    assert "4 test images" in error.message
    edit_params(**{"model.channel_mults": [1, 2, 2]})
    assert error_of(check_params).key == "model.channel_mults"
    data.class_names = []
    assert error_of(check_params).key == "model.conditioning"


def test_check_params_without_a_stage(committed):
    """A section is needed only by a stage of dvc.yaml."""
    edit_params(report=...)
    assert error_of(check_params).key == "report"
    pipeline = params.read_yaml("dvc.yaml")
    del pipeline["stages"]["report"]
    Path("dvc.yaml").write_text(yaml.safe_dump(pipeline))
    check_params()
