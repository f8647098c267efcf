"""The training loop: one optimizer step after another, resumable after any of them."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from ddpm.data.batches import Batches, to_model_range, to_tensor
from ddpm.data.prepared import Split
from ddpm.diffusion.levels import LEVEL_DRAWS, LevelDrawName
from ddpm.diffusion.loss import PLAIN, LossWeightName, check_weight, diffusion_loss, make_weight
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.files import InputError
from ddpm.params import OneOf, OrWord, Section
from ddpm.runtime import Progress, seed_of
from ddpm.training.ema import EMA

Count = Annotated[int, Field(ge=1)]
VALIDATION_IMAGES = 2_000
VALIDATION_BATCH = 500

LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),  # half a cosine down to 0 (Loshchilov & Hutter 2017)
}


class Train(Section):
    """The `train` section."""

    steps: Count
    batch_size: Count
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    lr_schedule: Annotated[str, OneOf(LR_SCHEDULES)]
    warmup_steps: Annotated[int, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0, lt=1)]
    gradient_clip: Annotated[float, Field(gt=0)]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    loss_weight: Annotated[LossWeightName | None, OrWord("auto")]
    loss_gamma: Annotated[Annotated[float, Field(gt=0)] | None, OrWord("auto")]
    levels: LevelDrawName
    label_dropout: Annotated[float, Field(ge=0, lt=1)]
    flip: bool
    log_every: Count
    validate_every: Count
    preview_every: Count
    checkpoint_every: Count


class Trainer:
    """Network, EMA, optimizer and loss history of one training.

    Randomness is a function of (seed, images seen): every step seeds PyTorch's default generator from them, so no generator
    state needs saving and a resumed run draws the same noise, levels, flips and dropout as an uninterrupted one.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        prediction: str,
        batches: Batches,
        settings: Train,
        seed: int,
        autocast: Callable[[], AbstractContextManager],
    ):
        self.network, self.batches, self.settings, self.seed = network, batches, settings, seed
        self.device = batches.device
        self.schedule, self.prediction, self.autocast = schedule.to(self.device), prediction, autocast
        self.optimizer = torch.optim.AdamW(
            network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=self.device.type != "mps"
        )
        self.ema = EMA(network, settings.ema_decay)
        name = settings.loss_weight or PLAIN[prediction]
        check_weight(name, schedule)
        self.weight = make_weight(name, settings.loss_gamma)
        self.levels = LEVEL_DRAWS[settings.levels](schedule.steps, self.device)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best_loss, self.best = math.inf, self.ema_weights()
        # Losses are added up on the device and read when they are logged: reading one waits for the device.
        self.loss_sum = torch.zeros((), device=self.device)

    @property
    def seen(self) -> int:
        """Training images seen so far."""
        return self.step * self.settings.batch_size

    def learning_rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ...: a linear warm-up, then the schedule."""
        s = self.settings
        if step < s.warmup_steps:
            return s.learning_rate * (step + 1) / s.warmup_steps
        progress = (step - s.warmup_steps) / max(1, s.steps - s.warmup_steps)
        return s.learning_rate * LR_SCHEDULES[s.lr_schedule](progress)

    def train_step(self) -> None:
        """One optimizer step."""
        torch.manual_seed(seed_of(self.seed, "train", self.seen))
        x0, labels = self.batches.batch(self.seen, self.settings.batch_size)
        loss = self.loss(x0, self.drop_labels(labels))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.step)
        self.loss_sum += loss.detach()

    def loss(self, x0: Tensor, labels: Tensor | None) -> Tensor:
        """Mean loss of clean images (B, C, H, W) at random levels, from the default generator."""
        index, weight = self.levels.draw(len(x0))
        eps = torch.randn_like(x0)
        x0, eps = (v.contiguous(memory_format=torch.channels_last) for v in (x0, eps))
        with self.autocast():
            losses = diffusion_loss(self.network, self.schedule, x0, labels, index, eps, self.prediction, self.weight)
        self.levels.update(index, losses.detach())
        return (weight * losses).mean()

    def drop_labels(self, labels: Tensor) -> Tensor:
        """Labels (B,), each replaced by "no class" with the chance that classifier-free guidance needs (Ho & Salimans 2022)."""
        dropped = torch.rand(labels.shape, device=self.device) < self.settings.label_dropout
        return labels.masked_fill(dropped, self.network.condition.classes)

    @torch.no_grad()
    def validation_loss(self, split: Split) -> float:
        """Mean loss of the EMA on up to 2,000 test images, always with the same noise and with levels spread over 1..T."""
        count = min(len(split.images), VALIDATION_IMAGES)
        generator = torch.Generator().manual_seed(seed_of(self.seed, "validation"))
        index = torch.linspace(1, self.schedule.steps, count).round().long()[torch.randperm(count, generator=generator)]
        total = 0.0
        with self.averaged():
            for start in range(0, count, VALIDATION_BATCH):
                part = slice(start, min(start + VALIDATION_BATCH, count))
                x0 = to_model_range(to_tensor(split.images[part]))
                eps = torch.randn(x0.shape, generator=generator)
                labels = torch.tensor(split.labels[part], device=self.device)
                x0, eps = x0.to(self.device), eps.to(self.device)
                with self.autocast():
                    losses = diffusion_loss(
                        self.network, self.schedule, x0, labels, index[part].to(self.device), eps,
                        self.prediction, self.weight,
                    )  # fmt: skip
                total += losses.sum().item()
        return total / count

    def averaged(self) -> "_Averaged":
        """A context in which the network holds its EMA weights and is in eval mode."""
        return _Averaged(self)

    def ema_weights(self) -> dict[str, Tensor]:
        """A copy of the EMA weights."""
        return {name: value.clone() for name, value in self.ema.state_dict().items()}

    def state_dict(self) -> dict:
        """All that a resumed training needs."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "levels": self.levels.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "best_loss": self.best_loss,
            "best": self.best,
            "loss_sum": self.loss_sum,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state_dict of an equal training."""
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        self.levels.load_state_dict(state["levels"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history = state["step"], state["history"]
        self.best_loss, self.best, self.loss_sum = state["best_loss"], state["best"], state["loss_sum"]


class _Averaged:
    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def __enter__(self) -> nn.Module:
        self.trainer.ema.swap()
        return self.trainer.network.eval()

    def __exit__(self, *_: object) -> None:
        self.trainer.network.train()
        self.trainer.ema.swap()


def train(
    trainer: Trainer,
    validation: Split,
    log: Callable[[dict[str, float]], None],
    preview: Callable[[Trainer], None],
    checkpoint: Callable[[Trainer], None],
) -> None:
    """Train to the last step, calling `log` with each new row of the history, `preview` and `checkpoint` at their intervals.

    Raises InputError if the loss is no longer finite; the last checkpoint stays.
    """
    s = trainer.settings
    trainer.network.train()

    def due(every: int) -> bool:
        return trainer.step % every == 0 or trainer.step == s.steps

    with Progress("train", s.steps * s.batch_size, "images", trainer.seen) as progress:
        note = ""
        while trainer.step < s.steps:
            trainer.train_step()
            row = {}
            if due(s.log_every):
                since = (trainer.step - 1) % s.log_every + 1
                row = {"loss": trainer.loss_sum.item() / since, "learning_rate": trainer.learning_rate(trainer.step - 1)}
                trainer.loss_sum.zero_()
                note = f"loss {row['loss']:.4f}"
                if not math.isfinite(row["loss"]):
                    raise InputError(
                        f"train: the loss is {row['loss']} at step {trainer.step}; lower train.learning_rate or "
                        "train.gradient_clip, or set runtime.precision to float32"
                    )
            if due(s.validate_every):
                row["validation_loss"] = trainer.validation_loss(validation)
                if row["validation_loss"] < trainer.best_loss:
                    trainer.best_loss, trainer.best = row["validation_loss"], trainer.ema_weights()
            if row:
                trainer.history.append({"step": trainer.step, **row})
                log(trainer.history[-1])
            if due(s.preview_every):
                preview(trainer)
            if due(s.checkpoint_every):
                checkpoint(trainer)
            progress.advance(s.batch_size, note)
