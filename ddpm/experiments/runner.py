"""Runs the pipeline for a record, with `dvc exp run --temp` or stage by stage without DVC.

Both leave the workspace unchanged and fill a folder with the code, params.yaml and the reports of the run.
"""

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ddpm.core.files import InputError, print_line, write_text, writing
from ddpm.core.params import PARAMS_FILE, PIPELINE_FILE
from ddpm.core.scratch import scratch_root
from ddpm.core.yaml_files import read_yaml
from ddpm.datasets.registry import raw_root
from ddpm.experiments.git import CODE, git, has_git
from ddpm.features.pretrained import weights_folder

# The sweep is not part of a run, so its reports in a commit are those of another one.
ON_DEMAND = "reports/sweep"


class RunSpec(NamedTuple):
    """What to run.

    name: name of the recipe.
    params: all of params.yaml, without the seed of the run.
    options: the `-S` options that change the committed params.yaml into params.
    """

    name: str
    params: dict[str, Any]
    options: list[str]


class RunResult(NamedTuple):
    """The result of a run.

    seconds: its duration.
    model: a line for the terminal that says where the model is.
    """

    seconds: float
    model: str


def run_with_dvc(spec: RunSpec, seed: int, folder: Path, extra: Sequence[str]) -> RunResult:
    """Runs an experiment, copies its commit and its outputs to `folder`, and runs the extra commands there.

    Raises InputError if DVC is missing, or if it or a command fails.
    """
    if importlib.util.find_spec("dvc") is None:
        raise InputError("DVC is not installed; run `pip install dvc`, or give --without-dvc", key="record")
    # DVC refuses the name of an existing experiment.
    name = f"{re.sub('[^0-9A-Za-z]+', '-', spec.name)}-seed-{seed}-{datetime.now():%y%m%d-%H%M%S}"
    changes = [*spec.options, "-S", f"seed={seed}"]
    start = time.monotonic()
    _run([sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", name, *changes], Path(), "dvc exp run")
    seconds = time.monotonic() - start
    refs = dict(line.split() for line in git("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps").splitlines())
    commit = next((commit for ref, commit in refs.items() if ref.endswith(f"/{name}")), None)
    if commit is None:
        raise InputError(f"created no experiment {name}; nothing was recorded", key="dvc exp run")
    _unpack(commit, folder)
    if extra:
        for path in _outputs(folder):
            get = [sys.executable, "-m", "dvc", "get", "-q", ".", path, "--rev", commit, "-o", str(folder / path)]
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            _run(get, Path(), f"dvc get {path}")
        _run_extra(extra, folder)
    return RunResult(seconds, f"`dvc exp apply {name}` puts its model and reports into the workspace")


def run_without_dvc(spec: RunSpec, seed: int, folder: Path, extra: Sequence[str]) -> RunResult:
    """Copies the commit, or the current folder if there is no Git, to `folder` and runs every stage there in order.

    Raises InputError if a stage or a command fails.
    """
    if has_git():
        _unpack("HEAD", folder)
    else:
        _copy(folder)
    write_text(folder / PARAMS_FILE, yaml.safe_dump({**spec.params, "seed": seed}, sort_keys=False, allow_unicode=True))
    stages = read_yaml(folder / PIPELINE_FILE)["stages"]
    start = time.monotonic()
    for name in active_stages(stages):
        print_line(f"Running stage {name!r}")
        _run(_words(stages[name]["cmd"]), folder, f"stage {name}")
    seconds = time.monotonic() - start
    _run_extra(extra, folder)
    return RunResult(seconds, f"its model is in {folder / 'models/ddpm'} (`python -m ddpm sample --model`)")


def active_stages(stages: Mapping[str, Any]) -> list[str]:
    """Returns the names of the stages that are not frozen. dvc.yaml lists a stage after those whose outputs it reads."""
    return [name for name, stage in stages.items() if not stage.get("frozen")]


def _outputs(folder: Path) -> list[str]:
    """Outputs that are in the cache of DVC instead of the commit."""
    stages = read_yaml(folder / PIPELINE_FILE)["stages"]
    return [out for name in active_stages(stages) for out in stages[name].get("outs", []) if isinstance(out, str)]


def _unpack(commit: str, folder: Path) -> None:
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        archive = folder / ".archive.zip"
        git("archive", "--format=zip", f"--output={archive}", commit)
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)
        archive.unlink()
        shutil.rmtree(folder / ON_DEMAND, ignore_errors=True)


def _copy(folder: Path) -> None:
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        for name in CODE:
            shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(PIPELINE_FILE, folder)


def _run_extra(extra: Sequence[str], folder: Path) -> None:
    for command in extra:
        print_line(f"> {command}")
        _run(_words(command), folder, command)


def _words(command: str) -> list[str]:
    """The words of a command; `python` becomes the running interpreter."""
    first, *rest = shlex.split(command)
    return [sys.executable if first == "python" else first, *rest]


def _run(command: Sequence[str], folder: Path, name: str) -> None:
    """Runs a command in a folder, with the raw data, pretrained weights and unfinished trainings of the current folder.

    SIGTERM and SIGINT go to the command, so that a training can save its state.
    """
    folders = {"DDPM_DATA_ROOT": raw_root(), "DDPM_SCRATCH": scratch_root(), "DDPM_WEIGHTS_ROOT": weights_folder()}
    places = {name: str(path.absolute()) for name, path in folders.items()}
    try:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | places)
    except OSError as error:
        raise InputError(f"cannot be run ({error.strerror})", key=name) from None
    received = []

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        if number == signal.SIGTERM:  # a terminal sends SIGINT to both processes
            process.terminate()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
    if signal.SIGINT in received:
        raise KeyboardInterrupt
    if status:
        raise InputError(f"ended with status {status}, for the reason above; this run was not recorded", key=name)
