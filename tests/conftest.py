"""Shared fixtures and helpers: a folder to run stages in, and the error line of a stage."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

# One thread each, in the processes that tests start too: these networks are too small to gain from more, and threads of several
# workers slow each other down. Read when PyTorch is imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["DVC_TEST"] = "1"  # no process in the background that looks for a newer DVC

# Now: its log would write to what captures the output of the first test that imports it, and that is closed after the test.
import dvc.logger  # noqa: F401
import hypothesis
import pytest
import torch
import yaml

from ddpm.cli.main import main as command_line
from ddpm.core import params
from ddpm.core.device import usable_cpus
from ddpm.core.files import InputError, write_json
from ddpm.core.stage import run_stage
from ddpm.core.weights import save_weights
from ddpm.core.yaml_files import read_yaml
from ddpm.data.prepared import Prepared, open_prepared
from ddpm.datasets.prepare import prepare
from ddpm.datasets.registry import DatasetName
from ddpm.datasets.settings import PrepareData
from ddpm.diffusion.schedule import Diffusion
from ddpm.features.classifier import Classifier, save_classifier
from ddpm.networks.checkpoints import make_config
from ddpm.networks.registry import NetworkSettings
from ddpm.networks.unet import UNet

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)
# The time of an example depends on the load of the machine.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")
MAX_WORKERS = 8  # each of them loads PyTorch
PROGRESS = re.compile(r"^[^:]+: [\d,]+/[\d,]+ \w+ \(\d+%\), ")

# Settings with which every stage takes about a second.
TINY = {
    "train_classifier.epochs": 1,
    "train_classifier.required_accuracy": 0.0,
    "diffusion.timesteps": 50,
    "model.channels": 4,
    "model.heads": 2,
    "train.steps": 4,
    "train.batch_size": 8,
    "train.warmup_steps": 1,
    "train.log_every": 1,
    "train.validate_every": 2,
    "train.preview_every": 4,
    "train.checkpoint_every": 2,
    "sample_ddpm.samples": 20,
    "sample_ddim.samples": 20,
    "sample_ddim.steps": 5,
    "evaluate.reconstruction_images": 20,
    "evaluate.likelihood_images": 10,
    "evaluate.likelihood_levels": 3,
    "evaluate.round_trip_images": 10,
    "evaluate.training_curve_samples": 20,
    "guidance.samples": 20,
    "guidance.steps": 3,
    "guidance.scales": [0.0, 1.0, 2.0],
    "edit.images": 3,
    "edit.scored_images": 10,
    "edit.steps": 5,
    "edit.repaint_jump_length": 2,
    "edit.repaint_resamples": 2,
    "edit.film_frames": 2,
    "sweep.samples": 60,
    "sweep.evaluations": [3, 4],
    "runtime.device": "cpu",
    "runtime.threads": 1,
    "runtime.processes": 1,
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Returns the number of workers: all CPUs for `pytest` without arguments; none for named files and for the slow tests."""
    everything = config.args_source == pytest.Config.ArgsSource.TESTPATHS and config.option.markexpr == "not slow"
    return min(usable_cpus(), MAX_WORKERS) if everything else 0


def diffusion(timesteps: int = 1000, **changes) -> Diffusion:
    """Returns the committed `diffusion` section with other timesteps and changes."""
    return Diffusion(**{**read_yaml(ROOT / "params.yaml")["diffusion"], "timesteps": timesteps, **changes})


class Checkout:
    """A new Git repository, and commands that run in it without settings from outside."""

    def __init__(self, folder: Path):
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_", "DDPM_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        settings = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder.parent / "site")}
        self.env = {**kept, **settings, "PATH": path, "PYTHONPATH": str(ROOT)}
        folder.mkdir()
        self.run("git", "init", "-q")
        for setting in ("user.name=t", "user.email=t@example.org", "commit.gpgSign=false"):
            self.run("git", "config", *setting.split("="))

    def run(self, *command: str, status: int = 0) -> subprocess.CompletedProcess:
        ended = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == status, ended.stdout + ended.stderr
        return ended

    def python(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess:
        """Runs `python -m` with these arguments."""
        return self.run(sys.executable, "-m", *arguments, status=status)

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "all")


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Writes texts by their path in the folder."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def edit(tree: dict, **dotted) -> dict:
    """Sets entries of nested dicts by their full path, in place; `...` removes one."""
    for path, value in dotted.items():
        *parents, key = path.split(".")
        node = tree
        for name in parents:
            node = node[name]
        if value is ...:
            del node[key]
        else:
            node[key] = value
    return tree


def edit_params(**dotted) -> None:
    """Sets keys of ./params.yaml by their full path, as `-S` does: edit_params(**{"train.steps": 2}); `...` removes a key."""
    tree = edit(read_yaml("params.yaml"), **dotted)
    Path("params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


@pytest.fixture(autouse=True)
def not_ignored():
    """A process in the background of a shell script ignores SIGINT, and so do those that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    """An empty raw folder in the current folder, which has a scratch folder too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for variable, name in {"DDPM_SCRATCH": "scratch", "DDPM_DATA_ROOT": "raw"}.items():
        monkeypatch.setenv(variable, str(tmp_path / name))
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """A new current folder with dvc.yaml, the tiny profile of params.yaml, and folders for raw files and unfinished work."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DDPM_DATA_ROOT", str(folder / "raw"))
    monkeypatch.setenv("DDPM_SCRATCH", str(folder / ".scratch"))
    for name in ("DVC_ROOT", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    edit_params(**TINY)
    return folder


def link_code(folder: Path = Path()) -> None:
    """Puts the code into a workspace: the fingerprint of a training includes it, and `python -m stages.NAME` imports it."""
    for name in ("ddpm", "stages"):
        (folder / name).symlink_to(ROOT / name)


def the_error(status: int, stdout: str, stderr: str) -> str:
    """Returns the one error line of a stage or command that failed; lines of progress may precede it.

    The status must be 1, or 2 where a command says how to use it.
    """
    lines = [line for line in stderr.splitlines() if not PROGRESS.match(line)]
    assert status == (2 if "; see `python -m ddpm" in stderr else 1), stdout + stderr
    assert "Traceback" not in stdout + stderr
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def input_error(key: str | None = None, match: str | None = None):
    """Returns a context that an InputError, of that key, must leave."""
    return pytest.raises(InputError, match=match, check=lambda error: key in (None, error.key))


def error_of(call, *arguments, **options) -> InputError:
    """Calls a function, which must raise InputError; returns the error."""
    with input_error() as error:
        call(*arguments, **options)
    return error.value


@pytest.fixture
def refused(capsys):
    """refused(main) runs the main function of a stage, which must fail, and returns its one error line."""

    def run(main) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_stage(main)
        return the_error(stopped.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def error(capsys):
    """error("sample", ...) runs a command, which must fail and write nothing, and returns its one error line."""

    def run(*arguments) -> str:
        before = sorted(Path().rglob("*"))
        capsys.readouterr()
        status = command_line([str(argument) for argument in arguments])
        assert sorted(Path().rglob("*")) == before
        return the_error(status, *capsys.readouterr())

    return run


def prepared() -> Prepared:
    """Prepares data/prepared as ./params.yaml says, and opens it."""
    p = params.load(dataset=DatasetName, prepare_data=PrepareData)
    prepare(p.dataset, p.prepare_data)
    return open_prepared(p.dataset, p.prepare_data.as_written())


@pytest.fixture
def data(workspace) -> Prepared:
    """A workspace with data/prepared of digits."""
    return prepared()


@pytest.fixture
def model(data) -> None:
    """A workspace with data/prepared and models/ddpm, an untrained network of T = 50."""
    settings = params.load(model=NetworkSettings).model
    write_json("models/ddpm/config.json", make_config(settings, "linear", "v", diffusion(50), data.identity(), {}, 0))
    save_weights(Path("models/ddpm/final.safetensors"), UNet(settings, data.shape, data.class_names).state_dict())


@pytest.fixture
def classifier(data) -> None:
    """A workspace with data/prepared and models/classifier, an untrained network."""
    save_classifier(Classifier(1, 10), data, {"accuracy": 1.0})
