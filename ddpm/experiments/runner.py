"""Runs the pipeline for a record: by `dvc exp run --temp`, which leaves the workspace alone, or stage by stage without DVC.

Either way a folder comes out that holds what the run left: code, params.yaml and reports.
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
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ddpm.core.files import InputError, write_text, writing
from ddpm.core.params import PARAMS_FILE, PIPELINE_FILE, read_yaml
from ddpm.core.scratch import scratch_root
from ddpm.datasets.registry import raw_root

RECORDS, README = "reports/recipes", "README.md"
# What may differ from the commit: it is what records are written into.
WRITTEN = (f"{RECORDS}/", README)
# Where a file that Git does not know yet would be part of what runs.
CODE = ("ddpm/", "stages/")
MAX_NAMED = 3
# Made by the sweep, which is no part of a run: what a commit holds of it belongs to another one.
ON_DEMAND = "reports/sweep"


class RunSpec(NamedTuple):
    """What to run: a name, the full params.yaml but for the seed, and the `-S` options that make it of the committed one."""

    name: str
    params: dict[str, Any]
    options: list[str]


class RunResult(NamedTuple):
    """Seconds that it took, and the line that says where the model is."""

    seconds: float
    model: str


def git(*arguments: str) -> str:
    """What a git command prints. Raises InputError with Git's reason if it fails."""
    try:
        ended = subprocess.run(["git", *arguments], capture_output=True, text=True, encoding="utf-8", check=False)
    except OSError as error:
        raise InputError(f"cannot be run ({error.strerror}); install it", key="git") from None
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or [f"ended with status {ended.returncode}"])[0]
        raise InputError(f"git {arguments[0]}: {reason.removeprefix('fatal: ')}; run in a checkout of the project")
    return ended.stdout


def has_git() -> bool:
    """Whether the current folder is that of a Git checkout."""
    return Path(".git").exists() and shutil.which("git") is not None


def check_clean() -> str:
    """The commit that is checked out. Raises InputError if files differ from it, since a record names what anyone can run."""
    changed = []
    for line in git("status", "--porcelain", "--untracked-files=all", "--no-renames").splitlines():
        path = line[3:].strip('"')
        if not path.startswith(CODE if line.startswith("??") else "") or path.startswith(WRITTEN):
            continue
        changed.append(path)
    if changed:
        named = ", ".join(changed[:MAX_NAMED]) + (f" and {len(changed) - MAX_NAMED} more" if len(changed) > MAX_NAMED else "")
        verb = "are" if len(changed) > 1 else "is"
        raise InputError(f"{named} {verb} not as committed; commit or stash, so that the record names what was run", key="record")
    return git("rev-parse", "HEAD").strip()


def with_dvc(order: RunSpec, seed: int, folder: Path, extra: Sequence[str]) -> RunResult:
    """Run an experiment, lay its commit into `folder`, and run the extra commands there with its outputs beside it.

    Raises InputError if DVC is not there, or if it or a command fails.
    """
    if importlib.util.find_spec("dvc") is None:
        raise InputError("DVC is not installed; run `pip install dvc`, or give --without-dvc", key="record")
    # DVC refuses a name that is there already.
    name = f"{re.sub('[^0-9A-Za-z]+', '-', order.name)}-seed-{seed}-{datetime.now():%y%m%d-%H%M%S}"
    changes = [*order.options, "-S", f"seed={seed}"]
    start = time.monotonic()
    _run([sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", name, *changes], Path(), "dvc exp run")
    seconds = time.monotonic() - start
    refs = dict(line.split() for line in git("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps").splitlines())
    commit = next((commit for ref, commit in refs.items() if ref.endswith(f"/{name}")), None)
    if commit is None:
        raise InputError(f"dvc exp run: left no experiment {name}; nothing was recorded")
    _unpack(commit, folder)
    if extra:
        for path in _outputs(folder):
            get = [sys.executable, "-m", "dvc", "get", "-q", ".", path, "--rev", commit, "-o", str(folder / path)]
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            _run(get, Path(), f"dvc get {path}")
        _run_extra(extra, folder)
    return RunResult(seconds, f"`dvc exp apply {name}` brings its model and reports into the workspace")


def without_dvc(order: RunSpec, seed: int, folder: Path, extra: Sequence[str]) -> RunResult:
    """Run every stage in `folder`, which becomes a copy of the commit, or of the current folder where there is no Git.

    Raises InputError if a stage or a command fails.
    """
    if has_git():
        _unpack("HEAD", folder)
    else:
        _copy(folder)
    write_text(folder / PARAMS_FILE, yaml.safe_dump({**order.params, "seed": seed}, sort_keys=False, allow_unicode=True))
    stages = read_yaml(folder / PIPELINE_FILE)["stages"]
    start = time.monotonic()
    for stage in stage_order(stages):
        print(f"Running stage {stage!r}", flush=True)
        _run(_words(stages[stage]["cmd"]), folder, f"stage {stage}")
    seconds = time.monotonic() - start
    _run_extra(extra, folder)
    return RunResult(seconds, f"its model is in {folder / 'models/ddpm'} (`python -m ddpm sample --model`)")


RUNNERS: dict[bool, Callable[[RunSpec, int, Path, Sequence[str]], RunResult]] = {True: with_dvc, False: without_dvc}


def stage_order(stages: Mapping[str, Any]) -> list[str]:
    """Names of the stages of dvc.yaml, but for frozen ones, each after those whose outputs it depends on."""
    active = {name: stage for name, stage in stages.items() if not stage.get("frozen")}
    made = {
        name: [p for kind in ("outs", "metrics", "plots") for p in _paths(stage.get(kind, []))] for name, stage in active.items()
    }
    graph = {
        name: [other for other in active if other != name and any(_overlap(d, p) for d in stage["deps"] for p in made[other])]
        for name, stage in active.items()
    }
    return list(TopologicalSorter(graph).static_order())


def _paths(entries: Sequence[Any]) -> list[str]:
    """Paths of entries of dvc.yaml, each a path or {path: options}."""
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def _overlap(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}/") or b.startswith(f"{a}/")


def _outputs(folder: Path) -> list[str]:
    """What DVC keeps of a run: outputs that Git does not."""
    stages = read_yaml(folder / PIPELINE_FILE)["stages"].values()
    return [out for stage in stages if not stage.get("frozen") for out in stage.get("outs", []) if isinstance(out, str)]


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
        print(f"> {command}", flush=True)
        _run(_words(command), folder, command)


def _words(command: str) -> list[str]:
    """The words of a command, its `python` being the one that runs now."""
    first, *rest = shlex.split(command)
    return [sys.executable if first == "python" else first, *rest]


def _run(command: Sequence[str], folder: Path, what: str) -> None:
    """Run a command in a folder, with the raw data and the state of trainings where they are for the current one.

    A signal to end is left to the command, which a training obeys by saving its state.
    """
    places = {"DDPM_DATA_ROOT": str(raw_root().absolute()), "DDPM_SCRATCH": str(scratch_root().absolute())}
    try:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | places)
    except OSError as error:
        raise InputError(f"cannot be run ({error.strerror})", key=what) from None
    received = []

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        if number == signal.SIGTERM:  # a terminal sends SIGINT to both
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
        raise InputError(f"ended with status {status}, for the reason above; nothing of this run was recorded", key=what)
