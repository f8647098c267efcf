"""Experiments beside each other: reads them from `dvc exp show`, writes reports/experiments.

    python -m ddpm experiments                       # those of the last commit
    python -m ddpm experiments --rev main -n 3       # those of the last three commits of main
    python -m ddpm experiments --all-commits

Which experiments are shown is left to DVC, so the options mean what they mean there.
"""

import io
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ddpm.core.files import InputError
from ddpm.core.params import PARAMS_FILE, read_yaml
from ddpm.core.paths import METRICS_FILE
from ddpm.experiments.compare import write_experiments
from ddpm.experiments.tables import CODE, SAMPLERS, SCORES, Experiments

HEADER = "Experiment,rev,typ,"
SEED, SUCCESS = "seed", "Success"
QUALITY = [key for key in SCORES if ".cost." not in key]
# Sections that change no number in METRICS_FILE.
IDLE = ("runtime", "report", "sweep", "guidance", "edit")
QUEUE = "`dvc exp run --queue -S 'schedule=linear,cosine' -S 'seed=range(0,3)'`, then `dvc queue start`"


def show_csv(options: Sequence[str] = ()) -> str:
    """What `dvc exp show --csv` prints. Raises InputError with DVC's reason if it fails."""
    command = [sys.executable, "-m", "dvc", "exp", "show", "--csv", "--hide-workspace", *options]
    ended = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if ended.returncode:
        said = [line for line in ended.stderr.splitlines() if line.startswith("ERROR: ")] or ended.stderr.splitlines()[-1:]
        reason = said[0].removeprefix("ERROR: ") if said else f"ended with status {ended.returncode}"
        raise InputError(f"dvc exp show: {reason}; run in a checkout of the project, with options that `dvc exp show` knows")
    return ended.stdout


def flat(tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The dotted keys of nested mappings, as DVC writes them."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def read_experiments(text: str, params: Sequence[str]) -> Experiments:
    """The finished experiments in the output of `dvc exp show --csv`; params are the dotted keys of params.yaml.

    Raises InputError where fewer than two can be compared, saying why.
    """
    shown = _read_csv(text)
    commits = shown["rev"].where(shown["typ"] == "baseline").ffill()
    committed = shown["typ"] == "baseline"
    names = shown["Experiment"].where(~committed, shown["rev"])
    shown.index = names.where(~names.duplicated(keep=False), names + " (" + shown["rev"] + ")")
    scores = pd.DataFrame({key: _numbers(shown, key) for key in SCORES}, index=shown.index)
    left_out = dict(_left_out(shown, scores))
    settings = {key: _column(shown, PARAMS_FILE, key) for key in params if key.split(".")[0] not in IDLE and key != SEED}
    about = pd.DataFrame(
        {
            "commit": commits.to_numpy(),
            "committed": committed.to_numpy(),
            "seed": _column(shown, PARAMS_FILE, SEED),
            "judge": _column(shown, str(METRICS_FILE), "classifier.sha256"),
            "data": _column(shown, str(METRICS_FILE), "data/prepared"),
            **{name: _column(shown, str(METRICS_FILE), f"{name}.sampler") for name in SAMPLERS},
        },
        index=shown.index,
    )
    everything = Experiments(about, pd.DataFrame({**settings, CODE: _code(shown)}, index=shown.index), scores, left_out)
    found = _counted_once(everything.take(~shown.index.isin(list(left_out))))
    if len(found.about) < 2:
        what = "no experiments" if committed.all() else "nothing to compare"
        reasons = "".join(f"; {name}: {reason}" for name, reason in found.left_out.items())
        raise InputError(f"{what}{reasons}; make some: {QUEUE}")
    return found


def _read_csv(text: str) -> pd.DataFrame:
    # Messages of DVC may stand before the table.
    start = 0 if text.startswith(HEADER) else text.find("\n" + HEADER) + 1
    if not text[start:].startswith(HEADER):
        raise InputError(f"no experiments: `dvc exp show` prints no table (is there a commit?); make some: {QUEUE}")
    return pd.read_csv(io.StringIO(text[start:]), dtype=str, keep_default_na=False)


def _column(shown: pd.DataFrame, path: str, key: str) -> pd.Series:
    """A column of a file; DVC leaves its path out where no other file has the key. Empty text where there is none."""
    for name in (f"{path}:{key}", key):
        if name in shown:
            return shown[name]
    return pd.Series("", index=shown.index)


def _numbers(shown: pd.DataFrame, key: str) -> pd.Series:
    return pd.to_numeric(_column(shown, str(METRICS_FILE), key), errors="coerce")


def _left_out(shown: pd.DataFrame, scores: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Names of experiments that have nothing to compare, and why."""
    states = shown["State"] if "State" in shown else pd.Series("", index=shown.index)
    for name, state in states.items():
        if state not in ("", SUCCESS):
            yield name, state.lower()
        elif scores.loc[name, [f"{sampler}.classifier.fid" for sampler in SAMPLERS]].isna().any():
            yield name, f"has no FID of both samplers in {METRICS_FILE}; run it to the end"


def _code(shown: pd.DataFrame) -> list[str]:
    """Which code each ran: the name of the first experiment that ran the same, by DVC's hashes of the stages' dependencies."""
    folders = [name for name in shown if name.startswith(("ddpm/", "stages/"))]
    folders = [name for name in folders if "reporting" not in name and name.split("/")[-1] not in ("report.py", "sweep.py")]
    first: dict[tuple, str] = {}
    return [first.setdefault(tuple(row), name) for name, *row in shown[folders].itertuples(name=None)]


def _counted_once(found: Experiments) -> Experiments:
    """Without runs that repeat another one and are no second seed: the same settings and seed, with the same scores or code."""
    names = [name for name in found.differing() if name != CODE]
    columns = [found.settings[names], found.about[["seed", "data"]], found.scores["n"]]
    keys = pd.concat(columns, axis=1).apply(tuple, axis=1)
    left_out, kept = dict(found.left_out), {}
    for name, key in keys.items():
        others = kept.setdefault(key, [])
        same = [other for other in others if _equal(found.scores[QUALITY], name, other)]
        rerun = [other for other in others if found.settings.loc[name, CODE] == found.settings.loc[other, CODE]]
        if same:
            left_out[name] = f"the same as {same[0]}"
        elif rerun:
            left_out[name] = f"settings, seed and code of {rerun[0]}, but other scores (another machine, other raw files?)"
        else:
            others.append(name)
    return found.take(~found.about.index.isin(list(left_out)))._replace(left_out=left_out)


def _equal(frame: pd.DataFrame, a: str, b: str) -> bool:
    return np.array_equal(frame.loc[a], frame.loc[b], equal_nan=True)


def report(revs: Sequence[str], num: int | None, all_commits: bool, out: Path) -> str:
    """Write the experiments of some commits, by the options of `dvc exp show`, to a folder; returns a line that says what."""
    options = [word for rev in revs for word in ("--rev", rev)]
    options += ["--num", str(num)] if num is not None else []
    options += ["--all-commits"] if all_commits else []
    found = read_experiments(show_csv(options), list(flat(read_yaml(PARAMS_FILE))))
    return write_experiments(out, found)
