"""The run that the loggers of a training show, and the scores that `evaluate` adds to it.

All files lie in .scratch/logs, or in $DDPM_LOGS, outside Git and DVC:

    tensorboard/<run>/   event files
    wandb/               the runs of W&B; <run>.id holds the id of a run, here and below
    mlflow/              database and pictures, unless $MLFLOW_TRACKING_URI names another place
    runs/<run>.json      the SHA-256 of the trained weights, by which `evaluate` finds the run
"""

import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm.core.files import InputError, first_line, print_line, read_json, remove, write_json, writing
from ddpm.core.loggers import FINISHED, LOGGERS, NEW, RESUMED, Run
from ddpm.core.params import PARAMS_FILE, UNDECLARED, flatten
from ddpm.core.paths import folder_of
from ddpm.core.yaml_files import read_yaml

EMA_DECAY = 0.9  # of loss_ema, per row


class Loggers:
    """The loggers of one run; one that fails is left out from then on, with a warning, since a training may have taken hours.

    names: keys of LOGGERS. Raises InputError if the folder of the logs cannot be made.
    """

    def __init__(self, names: Sequence[str], run: Run):
        self._run, self._open = run, {name: LOGGERS[name]() for name in names}
        self._mean = self._rows = 0
        if names:
            with writing(run.logs):
                run.logs.mkdir(parents=True, exist_ok=True)
            if run.start != FINISHED:
                remove(_record(run))
        self._each("open", run)

    def _each(self, method: str, *arguments: Any) -> None:
        for name, logger in list(self._open.items()):
            try:
                getattr(logger, method)(*arguments)
            except Exception as error:  # of any library, the disk or the network
                del self._open[name]
                message = f"warning: runtime.loggers: {name} is left out from now on; it failed: {first_line(error)}"
                print_line(message, sys.stderr)

    def row(self, row: Mapping[str, float]) -> None:
        """Logs a row of curves at its `step`. A row with a `loss` also gets `loss_ema`: after n of them m / (1 - 0.9^n), where
        each makes m = 0.9 m + 0.1 loss."""
        values = {name: value for name, value in row.items() if name != "step"}
        if "loss" in values:
            self._rows += 1
            self._mean = EMA_DECAY * self._mean + (1 - EMA_DECAY) * values["loss"]
            values["loss_ema"] = self._mean / (1 - EMA_DECAY**self._rows)
        self._each("row", values, int(row["step"]))

    def image(self, name: str, path: Path, step: int) -> None:
        """Logs the picture in a file."""
        if self._open:
            from PIL import Image

            self._each("image", name, np.asarray(Image.open(path).convert("RGB")), step)

    def close(self, values: Mapping[str, float | str], step: int, weights: str = "") -> None:
        """Logs results and ends the run. weights: SHA-256 of final.safetensors, by which `log_scores` finds a trained run."""
        self._each("summary", values, step)
        self._each("close", True)
        if self._open and weights:
            record = {"final_sha256": weights, "step": step, "loggers": list(self._open)}
            try:
                write_json(_record(self._run), record)
            except InputError as error:  # of the disk; the training is over
                print_line(f"warning: runtime.loggers: `evaluate` will not find this run: {error}", sys.stderr)

    def stop(self) -> None:
        """Ends the run of a training that did not reach its last step."""
        self._each("close", False)


def open_loggers(names: Sequence[str], fingerprint: str, resumed: bool) -> Loggers:
    """Opens the loggers of a training. names: keys of LOGGERS. resumed: whether it continues from a saved state."""
    experiment = re.sub(r"[^\w.-]", "_", os.environ.get("DVC_EXP_NAME") or "train")
    params = flatten({name: section for name, section in read_yaml(PARAMS_FILE).items() if name != UNDECLARED})
    params = {key: value if isinstance(value, int | float | str) else str(value) for key, value in params.items()}
    return Loggers(names, Run(f"{experiment}-{fingerprint[:8]}", _logs(), RESUMED if resumed else NEW, params))


def log_scores(names: Sequence[str], weights: str, scores: Mapping[str, Any]) -> None:
    """Adds the numbers of nested scores, as scores/..., to the run of the training that made the weights, if there is one.

    names: keys of LOGGERS. weights: SHA-256 of the file final.safetensors.
    """
    values = {f"scores/{key.replace('.', '/')}": value for key, value in flatten(scores).items()}
    values = {key: value for key, value in values.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    for path in sorted(_logs().glob("runs/*.json")) if names else ():
        try:
            record = read_json(path, "train")
        except InputError as error:
            print_line(f"warning: runtime.loggers: {error}", sys.stderr)
            continue
        if record.get("final_sha256") == weights:
            used = [name for name in names if name in record["loggers"]]
            Loggers(used, Run(path.stem, _logs(), FINISHED, {})).close(values, record["step"])


def check_installed(names: Sequence[str]) -> None:
    """Raises InputError for a logger whose package is missing."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder, such as that of W&B, is no package
            message = f"{name!r} needs a package that is missing: pip install -e '.[loggers]', or take it out of the list"
            raise InputError(message, key="runtime.loggers", where=PARAMS_FILE)


def _logs() -> Path:
    return folder_of("DDPM_LOGS", ".scratch/logs")


def _record(run: Run) -> Path:
    return run.logs / "runs" / f"{run.name}.json"
