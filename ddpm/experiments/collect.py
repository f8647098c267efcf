"""Reads experiments from `dvc exp show` and writes their comparison to reports/experiments.

    python -m ddpm experiments                       # those of the last commit
    python -m ddpm experiments --rev main -n 3       # those of the last three commits of main
    python -m ddpm experiments --all-commits

DVC selects the experiments, so the options have the meaning that they have in `dvc exp show`.
"""

import io
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ddpm.core.files import InputError
from ddpm.core.params import PARAMS_FILE, flatten
from ddpm.core.paths import METRICS_FILE
from ddpm.core.yaml_files import read_yaml
from ddpm.experiments.compare import write_experiments
from ddpm.experiments.git import CHECKOUT
from ddpm.experiments.tables import CODE, SCORES, Experiments
from ddpm.report.other_weights import TRAINED, of_other_weights
from ddpm.report.summary import SAMPLES

HEADER = "Experiment,rev,typ,"
SEED, SUCCESS = "seed", "Success"
QUALITY = [key for key in SCORES if ".cost." not in key]
# Sections, folders and scripts that change no number in METRICS_FILE.
IDLE = ("runtime", "report", "sweep", "distill", "guidance", "edit")
IDLE_CODE = ("ddpm/distillation", "ddpm/plots", "ddpm/report", "stages/report.py", "stages/sweep.py", "stages/distill.py")
QUEUE = "`dvc exp run --queue -S 'schedule=linear,cosine' -S 'seed=range(0,3)'`, then `dvc queue start`"


def show_csv(options: Sequence[str] = ()) -> str:
    """Returns the output of `dvc exp show --csv`. Raises InputError with the reason that DVC prints if it fails."""
    command = [sys.executable, "-m", "dvc", "exp", "show", "--csv", "--hide-workspace", *options]
    process = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if process.returncode:
        lines = process.stderr.splitlines()
        lines = [line for line in lines if line.startswith("ERROR: ")] or lines[-1:] or [f"exit status {process.returncode}"]
        raise InputError(f"{lines[0].removeprefix('ERROR: ')}; {CHECKOUT}", key="dvc exp show")
    return process.stdout


def read_experiments(text: str, params: Sequence[str]) -> Experiments:
    """Returns the finished experiments in the output of `dvc exp show --csv`. params: dotted keys of params.yaml.

    Raises InputError, with the reasons, if fewer than two can be compared.
    """
    shown = _read_csv(text)
    commits = shown["rev"].where(shown["typ"] == "baseline").ffill()
    committed = shown["typ"] == "baseline"
    names = shown["Experiment"].where(~committed, shown["rev"])
    shown.index = names.where(~names.duplicated(keep=False), names + " (" + shown["rev"] + ")")
    texts = {key: _column(shown, str(METRICS_FILE), key) for key in SCORES}
    scores = pd.DataFrame({key: pd.to_numeric(text, errors="coerce") for key, text in texts.items()}, index=shown.index)
    scores = scores.where(np.isfinite(scores))
    left_out = dict(_left_out(shown, scores))
    settings = {key: _column(shown, PARAMS_FILE, key) for key in params if key.split(".")[0] not in IDLE and key != SEED}
    about = pd.DataFrame(
        {
            "commit": commits.to_numpy(),
            "committed": committed.to_numpy(),
            "seed": _column(shown, PARAMS_FILE, SEED),
            "classifier": _column(shown, str(METRICS_FILE), "classifier.sha256"),
            "data": _column(shown, str(METRICS_FILE), "data/prepared"),
            **{name: _column(shown, str(METRICS_FILE), f"{name}.sampler") for name in SAMPLES},
        },
        index=shown.index,
    )
    experiments = Experiments(about, pd.DataFrame({**settings, CODE: _code(shown)}, index=shown.index), scores, left_out)
    experiments = _without_repeats(experiments.take(~shown.index.isin(list(left_out))))
    if len(experiments.about) < 2:
        problem = "no experiments" if committed.all() else "nothing to compare"
        reasons = "".join(f"; {name}: {reason}" for name, reason in experiments.left_out.items())
        raise InputError(f"{problem}{reasons}; run some: {QUEUE}")
    return experiments


def _read_csv(text: str) -> pd.DataFrame:
    # DVC may print messages before the table.
    start = 0 if text.startswith(HEADER) else text.find("\n" + HEADER) + 1
    if not text[start:].startswith(HEADER):
        raise InputError(f"no experiments: `dvc exp show` prints no table (is there a commit?); run some: {QUEUE}")
    return pd.read_csv(io.StringIO(text[start:]), dtype=str, keep_default_na=False)


def _column(shown: pd.DataFrame, path: str, key: str) -> pd.Series:
    """A column of a file, empty if there is none; DVC writes the path only if several files have the key."""
    for name in (f"{path}:{key}", key):
        if name in shown:
            return shown[name]
    return pd.Series("", index=shown.index)


def _left_out(shown: pd.DataFrame, scores: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Names of experiments without scores to compare, and why."""
    states = shown["State"] if "State" in shown else pd.Series("", index=shown.index)
    for name, state in states.items():
        if state not in ("", SUCCESS):
            yield name, state.lower()
        elif scores.loc[name, [f"{sampler}.classifier.fid" for sampler in SAMPLES]].isna().any():
            yield name, f"has no FID of both samplers in {METRICS_FILE}; run it to the end"
        elif _of_other_weights(shown.loc[[name]]):
            yield name, f"{METRICS_FILE} has the scores of other weights; run it to the end"


def _of_other_weights(row: pd.DataFrame) -> bool:
    """Whether scores are of other weights than those that the experiment trained."""
    models = {
        name: {key: _column(row, str(METRICS_FILE), f"{name}model.{key}").iloc[0] for key in ("checkpoint", "sha256")}
        for name in ("", *(f"{samples}." for samples in SAMPLES))  # of `evaluate` itself, and of each set of samples
    }
    return bool(of_other_weights(_column(row, str(TRAINED), "final_sha256").iloc[0], models))


def _code(shown: pd.DataFrame) -> list[str]:
    """The code of each experiment: the name of the first one with the same hashes of the stages' dependencies."""
    folders = [name for name in shown if name.startswith(("ddpm/", "stages/")) and not name.startswith(IDLE_CODE)]
    first: dict[tuple, str] = {}
    return [first.setdefault(tuple(row), name) for name, *row in shown[folders].itertuples(name=None)]


def _without_repeats(experiments: Experiments) -> Experiments:
    """Leaves out runs with the settings and seed of another one, if their scores or their code are equal too."""
    names = [name for name in experiments.differing() if name != CODE]
    columns = [experiments.settings[names], experiments.about[["seed", "data"]], experiments.scores["n"]]
    keys = pd.concat(columns, axis=1).apply(tuple, axis=1)
    left_out, kept, scores = dict(experiments.left_out), {}, experiments.scores[QUALITY]
    for name, key in keys.items():
        others = kept.setdefault(key, [])
        same = [other for other in others if scores.loc[name].equals(scores.loc[other])]
        rerun = [other for other in others if experiments.settings.loc[name, CODE] == experiments.settings.loc[other, CODE]]
        if same:
            left_out[name] = f"the same as {same[0]}"
        elif rerun:
            left_out[name] = f"settings, seed and code of {rerun[0]}, but other scores (another machine, other raw files?)"
        else:
            others.append(name)
    return experiments.take(~experiments.about.index.isin(list(left_out)))._replace(left_out=left_out)


def report(revs: Sequence[str], num: int | None, all_commits: bool, out: Path, force: bool) -> str:
    """Writes the comparison to a folder, as `write_experiments` does; returns a line for the terminal.

    revs, num, all_commits: options of `dvc exp show`.
    """
    options = [word for rev in revs for word in ("--rev", rev)]
    options += ["--num", str(num)] if num is not None else []
    options += ["--all-commits"] if all_commits else []
    return write_experiments(out, read_experiments(show_csv(options), list(flatten(read_yaml(PARAMS_FILE)))), force)
