"""The files that process 0 writes during a training and at its end: models/ddpm, reports/train and the state to resume from."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from ddpm.core import processes
from ddpm.core.device import Runtime
from ddpm.core.files import remove_partial, sha256, write_json, write_text
from ddpm.core.logged_run import open_loggers
from ddpm.core.paths import MODEL_DIR
from ddpm.core.run_log import RunLog
from ddpm.core.weights import save_weights
from ddpm.networks.checkpoints import CHECKPOINTS, CONFIG
from ddpm.networks.power_ema import SNAPSHOTS, list_snapshots, save_snapshot, snapshot_file
from ddpm.training.checkpoint import FINISHED, ResumeState
from ddpm.training.finished import prune
from ddpm.training.loop import SPEED_COLUMNS, Hooks
from ddpm.training.settings import BEST_BY
from ddpm.training.trainer import Trainer

REPORT = Path("reports/train")
SPEED = REPORT / "speed.csv"
PREVIEWS = "previews"


class TrainingArtifacts:
    """Writes the files of one training; a resumed training first restores those of the run before.

    inputs: what the training computes from (`checkpoint.stage_inputs`), which is kept with its last state.
    """

    def __init__(self, trainer: Trainer, config: dict, saved: ResumeState, inputs: dict[str, Any], runtime: Runtime):
        self.trainer, self.config, self.saved, self.inputs = trainer, config, saved, inputs
        self.kept_states = runtime.kept_states
        remove_partial(MODEL_DIR)
        self._begin()
        self.loggers = open_loggers(runtime.loggers, saved.fingerprint, resumed=trainer.step > 0)
        self._log_again()
        for step in list_snapshots(saved.folder):
            if step > trainer.step:
                snapshot_file(saved.folder, step).unlink()
        self.parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
        several = f" in {processes.world_size()} processes" if processes.world_size() > 1 else ""
        print(f"{config['model']['type']} with {self.parameters:,} parameters on {trainer.device}{several}", flush=True)
        if trainer.step:
            print(f"resuming at step {trainer.step:,} of {trainer.settings.steps:,} (DDPM_FRESH=1 discards it)", flush=True)

    def _begin(self) -> None:
        """Writes the files that a training begins with and adds to."""
        self.log = RunLog(REPORT)
        write_json(MODEL_DIR / CONFIG, self.config)
        for row in self.trainer.history:
            self.log.log(row, step="step")
        self._write_speed()
        self.saved.publish(PREVIEWS, REPORT / PREVIEWS)

    def _log_again(self) -> None:
        """Gives the loggers what the saved state holds, step by step."""
        rows = defaultdict(dict)
        for row in (*self.trainer.history, *map(_curves, self.trainer.speed)):
            rows[row["step"]] |= row
        previews = {int(path.stem.split("_")[1]): path for path in (self.saved.folder / PREVIEWS).glob("step_*.png")}
        for step in sorted(rows.keys() | previews):
            if step in rows:
                self.loggers.row(rows[step])
            if step in previews and step <= self.trainer.step:  # a later one is drawn again
                self.loggers.image(PREVIEWS, previews[step], step)

    def hooks(self) -> Hooks:
        """Returns the functions that the training loop calls."""
        return Hooks(self._log, self._speed, self._preview, self._snapshot, self._checkpoint, self._keep)

    def _log(self, row: dict[str, float]) -> None:
        self.log.log(row, step="step")
        self.loggers.row(row)

    def _speed(self, row: dict[str, float]) -> None:
        self._write_speed()
        self.loggers.row(_curves(row))

    def finish(self) -> None:
        """Writes the files of a finished training, and removes its state."""
        trainer = self.trainer
        # `dvc repro` beside this training removes the outputs, and then is refused.
        if not (MODEL_DIR / CONFIG).exists():
            self._begin()
        save_weights(MODEL_DIR / CHECKPOINTS["latest"], trainer.network.state_dict())
        save_weights(MODEL_DIR / CHECKPOINTS["final"], trainer.ema_weights())
        save_weights(MODEL_DIR / CHECKPOINTS["best"], trainer.best)
        self._prune()
        self.saved.publish(SNAPSHOTS, MODEL_DIR / SNAPSHOTS)
        # Late imports, here and below: no stage reads these pictures, so `train` does not depend on the code that draws them.
        from ddpm.plots.figures import training_curves

        training_curves(REPORT / "training.png", trainer.history, trainer.speed)
        weights = sha256(MODEL_DIR / CHECKPOINTS["final"])
        results = {"parameters": self.parameters, "best_by": trainer.settings.best_by, "final_sha256": weights}
        for name in BEST_BY:
            if values := [row[name] for row in trainer.history if name in row]:
                results[f"best_{name}"] = min(values)
        if trainer.settings.score_every:
            results["classifier_sha256"] = self.config["training"]["classifier_sha256"]
        self.log.close(**results)
        self.loggers.close({f"results/{name}": value for name, value in results.items()}, trainer.step, weights)
        print(f"time: {trainer.phases.summary()}", flush=True)
        self.saved.discard()
        prune(self.saved.folder / FINISHED, self.kept_states)

    def _write_speed(self) -> None:
        rows = self.trainer.speed
        lines = [SPEED_COLUMNS, *((str(row["step"]), *(f"{row[name]:.4g}" for name in SPEED_COLUMNS[1:])) for row in rows)]
        write_text(SPEED, "".join(f"{','.join(line)}\n" for line in lines))

    def _preview(self, trainer: Trainer) -> None:
        from ddpm.plots.image_grid import plain_grid
        from ddpm.sampling.generate import generate_preview
        from ddpm.sampling.model import from_config

        with trainer.averaged() as averaged:
            images = generate_preview(from_config(averaged, self.config))
        path = self.saved.folder / PREVIEWS / f"step_{trainer.step:07d}.png"
        plain_grid(path, images, columns=10, tile=40)
        self.saved.publish(PREVIEWS, REPORT / PREVIEWS)
        self.loggers.image(PREVIEWS, path, trainer.step)

    def _snapshot(self, trainer: Trainer) -> None:
        save_snapshot(self.saved.folder, trainer.step, {key: track.state_dict() for key, track in trainer.tracks.items()})

    def _checkpoint(self, trainer: Trainer) -> None:
        save_weights(MODEL_DIR / CHECKPOINTS["latest"], trainer.network.state_dict())
        self.saved.save(trainer.state_dict())
        self._prune()

    def _keep(self, trainer: Trainer) -> None:
        if self.kept_states:
            self.saved.keep(trainer.state_dict(), self.inputs)

    def _prune(self) -> None:
        """Removes the snapshots beyond the limit; it runs after the state is saved, so that a resumed training misses none."""
        settings = self.trainer.settings
        kept = kept_snapshots(settings.snapshot_steps(self.trainer.step), settings.snapshots)
        for step in set(list_snapshots(self.saved.folder)) - set(kept):
            snapshot_file(self.saved.folder, step).unlink()


def _curves(row: dict[str, float]) -> dict[str, float]:
    """Returns a row of the speed table under the names of curves."""
    return {name if name == "step" else f"speed/{name}": value for name, value in row.items()}


def kept_snapshots(due: list[int], count: int) -> list[int]:
    """Chooses which snapshots to keep: simulates adding each step of `due` and dropping the most redundant one beyond `count`.

    A short EMA needs snapshots close together at its end, so the kept ones get denser towards the last: as 1 - u^1.5 with even
    u. The result depends on `due` alone, not on the files that exist.
    """
    kept: list[int] = []
    for step in due:
        kept.append(step)
        if len(kept) > count:
            places = [1.0, *((1 - s / step) ** (2 / 3) for s in kept)]
            # The gap that dropping each would leave between its neighbours; the start of the training is one, the last stays.
            gaps = [before - after for before, after in zip(places[:-2], places[2:], strict=True)]
            kept.pop(gaps.index(min(gaps)) if gaps else 0)
    return kept
