"""The training loop: optimizer steps, and between them logs, validation, scores, previews, snapshots and checkpoints."""

import math
from collections.abc import Callable
from typing import NamedTuple

from ddpm.core import processes
from ddpm.core.progress import Progress
from ddpm.core.stage import Interrupted
from ddpm.data.prepared import Split
from ddpm.training.monitor import stop_signals
from ddpm.training.trainer import Trainer

STEP_PHASES = ("data", "forward", "backward", "update")
SPEED_COLUMNS = ("step", "images_per_second", *(f"{name}_ms" for name in STEP_PHASES))


class Hooks(NamedTuple):
    """Functions that the loop calls in process 0, at the intervals of the settings.

    log: receives each new row of the history.
    speed: receives each new row of the speed table.
    preview, snapshot, checkpoint: receive the trainer.
    keep: receives the trainer after the last step that a longer training has in common with this one.
    """

    log: Callable[[dict[str, float]], None] = lambda row: None
    speed: Callable[[dict[str, float]], None] = lambda row: None
    preview: Callable[[Trainer], None] = lambda trainer: None
    snapshot: Callable[[Trainer], None] = lambda trainer: None
    checkpoint: Callable[[Trainer], None] = lambda trainer: None
    keep: Callable[[Trainer], None] = lambda trainer: None


def train(
    trainer: Trainer, validation: Split, hooks: Hooks, score: Callable[[], float] | None = None, title: str = "train"
) -> None:
    """Trains to the last step.

    title: of the progress bar.
    score: returns the FID of the network, which holds its EMA weights then; called in every process, every `score_every` steps.

    Raises InputError after more non-finite gradients in a row than the settings allow, and Interrupted, after a checkpoint, on
    SIGTERM or SIGINT.
    """
    s = trainer.settings
    trainer.network.train()

    def due(every: int) -> bool:
        return every > 0 and (trainer.step % every == 0 or trainer.step == s.steps)

    with Progress(title, s.steps * s.batch_size, "images", trainer.seen) as progress, stop_signals() as stop:
        note, logged = "", trainer.step
        while trainer.step < s.steps:
            trainer.train_step()
            logging, validating, saving = due(s.log_every), due(s.validate_every), due(s.checkpoint_every)
            scoring = score is not None and due(s.score_every)
            if logging or validating or scoring or saving or stop.number or trainer.device.type == "cpu":
                trainer.guard.check()
            row = {}
            if logging:
                row = trainer.sums.read() | {"learning_rate": s.learning_rate_at(trainer.step - 1)}
                note = f"loss {row['loss']:.4f}" if "loss" in row else note
                trainer.speed.append(_speed(trainer, (trainer.step - logged) * s.batch_size))
                logged = trainer.step
            if validating:
                trainer.phases.enter("validation")
                row["validation_loss"] = trainer.validation_loss(validation)
            if scoring:
                trainer.phases.enter("scores")
                with trainer.averaged():
                    row["fid"] = score()
            if row.get(s.best_by, math.inf) < trainer.best_value:
                trainer.best_value, trainer.best = row[s.best_by], trainer.ema_weights()
            if row:
                trainer.history.append({"step": trainer.step, **row})
            # The rest concerns process 0 only: it needs no other process, and it alone handles a signal.
            if processes.is_main_process():
                _write(trainer, hooks, bool(row), logging, due(s.preview_every))
                stopping = stop.number
                # Before the checkpoint: a training that resumes from a later one does not come by here again.
                if trainer.step == s.shared_steps:
                    trainer.phases.enter("checkpoints")
                    hooks.keep(trainer)
                if saving or stopping:
                    trainer.phases.enter("checkpoints")
                    hooks.checkpoint(trainer)
                if stopping:
                    saved = f"train: stopped at step {trainer.step:,}; its state is saved, the same command continues from there"
                    raise Interrupted(stopping, saved)
            progress.advance(s.batch_size, note)
    trainer.phases.read()


def _write(trainer: Trainer, hooks: Hooks, has_row: bool, logging: bool, previewing: bool) -> None:
    trainer.phases.enter("logs")
    if has_row:
        hooks.log(trainer.history[-1])
    if logging:
        hooks.speed(trainer.speed[-1])
    if previewing:
        trainer.phases.enter("previews")
        hooks.preview(trainer)
    if trainer.settings.snapshot_due(trainer.step):
        trainer.phases.enter("snapshots")
        hooks.snapshot(trainer)


def _speed(trainer: Trainer, images: int) -> dict[str, float]:
    """Returns a row of the speed table: images per second of the training steps since the last row, and milliseconds per step."""
    seconds = trainer.phases.read()
    training = sum(seconds.get(name, 0.0) for name in STEP_PHASES)
    steps = images / trainer.settings.batch_size
    return {
        "step": trainer.step,
        "images_per_second": images / max(training, 1e-9),
        **{f"{name}_ms": 1000 * seconds.get(name, 0.0) / max(steps, 1) for name in STEP_PHASES},
    }
