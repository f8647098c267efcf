"""TensorBoard, Weights & Biases and MLflow behind one interface, beside DVCLive (`runtime.loggers`).

A resumed training logs its saved history again: a logger either replaces the run, or passes over the steps that it has.
"""

import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from filelock import FileLock

from ddpm.core.files import print_line, write_text

# Replace the run that this machine made under this name, continue it, or add scores to it.
NEW, RESUMED, FINISHED = "new", "resumed", "finished"


class Run(NamedTuple):
    """The run that a logger opens.

    name: experiment of DVC and fingerprint of the training.
    logs: folder of all logs.
    start: NEW, RESUMED or FINISHED.
    params: hyperparameters by their dotted keys, numbers and texts; empty for a finished run.
    """

    name: str
    logs: Path
    start: str
    params: dict[str, Any]


class Logger(Protocol):
    """What a class of LOGGERS has. A method may raise any exception, which ends the logger and not the training."""

    def open(self, run: Run) -> None:
        """Imports the package and opens the run."""

    def row(self, values: dict[str, float], step: int) -> None:
        """Logs a point of some curves. The steps never decrease."""

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Logs an image, uint8 (H, W, 3)."""

    def summary(self, values: dict[str, float | str], step: int) -> None:
        """Logs results of the whole run."""

    def close(self, completed: bool) -> None:
        """Writes what is left, and marks the run as finished, or as one that ended early."""


class TensorBoard:
    """Writes event files. A resumed training replaces those of the run, whose last rows a kill may have lost."""

    def open(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder, suffix = run.logs / "tensorboard" / run.name, ".scores" if run.start == FINISHED else ""
        for path in folder.glob(f"*{suffix}"):
            path.unlink()
        self._writer = SummaryWriter(str(folder), flush_secs=5, filename_suffix=suffix)
        if run.params:
            # Without the description of the experiment, from which alone TensorBoard would take the columns of its table.
            for summary in hparams(run.params, {})[1:]:
                self._writer.file_writer.add_summary(summary)

    def row(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        self._writer.add_image(name, image, step, dataformats="HWC")

    def summary(self, values: dict[str, float | str], step: int) -> None:
        for name, value in values.items():
            (self._writer.add_text if isinstance(value, str) else self._writer.add_scalar)(name, value, step)

    def close(self, completed: bool) -> None:
        self._writer.close()


class WandB:
    """Logs to a server of W&B, to which a resumed training adds what is missing, or to a folder, which it replaces."""

    def open(self, run: Run) -> None:
        _set_defaults(WANDB_SILENT="true", WANDB_CONSOLE="off", WANDB_FINISH_TIMEOUT="120")
        import wandb
        from requests.utils import get_netrc_auth

        settings = wandb.setup().settings
        mode, key = settings.mode, settings.api_key or settings.identity_token_file or get_netrc_auth(settings.base_url)
        if mode == "online" and not key:  # W&B itself would ask
            mode = "offline"
            print_line("wandb: not logged in, so the run stays on this machine until `wandb login` and `wandb sync`")
        note, known = _id_of(run, "wandb")
        run_id = known if known and run.start != NEW else secrets.token_hex(4)
        write_text(note, run_id)
        if known and run.start != FINISHED:
            for folder in note.parent.glob(f"offline-run-*-{known}*"):
                shutil.rmtree(folder, ignore_errors=True)  # the service of the killed run may still end in it
        project, resume = os.environ.get("WANDB_PROJECT") or "ddpm", "allow" if mode == "online" else None
        about = {"project": project, "name": run.name, "id": run_id, "config": run.params}
        self._run = wandb.init(**about, mode=mode, resume=resume, dir=run.logs)
        self._image, self._first = wandb.Image, self._run.starting_step
        print_line(f"wandb: {mode}, {self._run.url or self._run.settings.sync_dir}")

    def row(self, values: dict[str, Any], step: int) -> None:
        if step >= self._first:
            self._run.log(values, step=step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        self.row({name: self._image(image)}, step)

    def summary(self, values: dict[str, float | str], step: int) -> None:
        self._run.summary.update(values)

    def close(self, completed: bool) -> None:
        self._run.finish(0 if completed else 1)


class MLflow:
    """Logs to a server or database of MLflow, to which a resumed training adds what is missing."""

    def open(self, run: Run) -> None:
        # By default a server that is gone would hold up the training for minutes.
        _set_defaults(MLFLOW_HTTP_REQUEST_TIMEOUT="10", MLFLOW_HTTP_REQUEST_MAX_RETRIES="2", MLFLOW_LOGGING_LEVEL="WARNING")
        import mlflow
        from mlflow.entities import Metric

        folder, place, artifacts = (run.logs / "mlflow").absolute(), os.environ.get("MLFLOW_TRACKING_URI"), None
        folder.mkdir(parents=True, exist_ok=True)
        if not place:
            place, artifacts = f"sqlite:///{folder}/mlflow.db", (folder / "artifacts").as_uri()
        self._metric = Metric
        with FileLock(folder / "open.lock"):  # several trainings may make the database and the experiment at once
            self._client = mlflow.MlflowClient(place)
            self._id = self._find(run, artifacts)
        self._client.update_run(self._id, status="RUNNING")
        logged = self._client.get_run(self._id).data.metrics if run.start == RESUMED else ()  # other scores may follow
        histories = {key: self._client.get_metric_history(self._id, key) for key in logged}
        self._last = {key: max(metric.step for metric in history) for key, history in histories.items()}

    def _find(self, run: Run, artifacts: str | None) -> str:
        """Returns the id of the run, which is made if this machine has none of this name to continue."""
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        note, known = _id_of(run, "mlflow")
        try:
            stage = self._client.get_run(known).info.lifecycle_stage if known else None
        except MlflowException:  # another server, or a removed database
            stage = None
        if stage == "active":
            if run.start != NEW:
                return known
            self._client.delete_run(known)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "ddpm"
        experiment = self._client.get_experiment_by_name(name)
        group = experiment.experiment_id if experiment else self._client.create_experiment(name, artifacts)
        made = self._client.create_run(group, run_name=run.name).info.run_id
        params = [Param(key, str(value)) for key, value in run.params.items()]
        for first in range(0, len(params), 100):  # the most that MLflow takes at once
            self._client.log_batch(made, params=params[first : first + 100])
        write_text(note, made)
        return made

    def row(self, values: dict[str, float], step: int) -> None:
        self.summary(values, step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        self._client.log_image(self._id, image, artifact_file=f"{name}/step_{step:07d}.png")

    def summary(self, values: dict[str, float | str], step: int) -> None:
        now = int(1000 * time.time())
        numbers = [(key, value) for key, value in values.items() if not isinstance(value, str)]
        new = [self._metric(key, value, now, step) for key, value in numbers if step > self._last.get(key, -1)]
        self._client.log_batch(self._id, metrics=new)
        for key in values.keys() - dict(numbers):
            self._client.set_tag(self._id, key, values[key])

    def close(self, completed: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if completed else "KILLED")


def _id_of(run: Run, service: str) -> tuple[Path, str | None]:
    """Returns the file that holds the id of a run at a service, and the id, None for a run that this machine did not make."""
    note = run.logs / service / f"{run.name}.id"
    return note, note.read_text() if note.exists() else None


def _set_defaults(**variables: str) -> None:
    for name, value in variables.items():
        os.environ.setdefault(name, value)


LOGGERS: dict[str, Callable[[], Logger]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}  # by their packages
