"""What is trained: network, averages, optimizer, and one exact step of them after another."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from ddpm.core import processes
from ddpm.core.seeds import seed_of
from ddpm.data.images import to_model_range, to_tensor
from ddpm.data.loader import Batches
from ddpm.data.prepared import Split
from ddpm.diffusion.loss import PLAIN, check_weight, diffusion_loss, make_weight
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.diffusion.timestep_sampling import TIMESTEP_SAMPLERS
from ddpm.networks import power_ema
from ddpm.networks.conditioning import masked_input
from ddpm.training.ema import EMA, FlatParameters, ramped
from ddpm.training.masks import random_masks
from ddpm.training.monitor import FLOAT16_TRIALS, NonFiniteGuard, PhaseTimer
from ddpm.training.settings import Train

VALIDATION_IMAGES = 2_000
VALIDATION_BATCH = 500
QUARTERS = ("0_25", "25_50", "50_75", "75_100")  # of the levels, in percent of T


class Trainer:
    """Network, averages, optimizer and loss history of one training.

    Randomness is a function of (seed, images seen, rank): every step seeds PyTorch's default generator from them, so no generator
    state needs saving and a resumed run draws the same noise, levels, flips and dropout as an uninterrupted one. All but
    dropout is drawn for the whole batch in every process, so it does not depend on how many there are.

    model: what is called in training, if that is not the network itself: compiled, or shared by several processes.
    No step reads a value back from the device, which would make it wait; sums of the losses are read when they are logged.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        prediction: str,
        batches: Batches,
        settings: Train,
        seed: int,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        scaler: torch.amp.GradScaler | None = None,
        model: nn.Module | None = None,
    ):
        settings.check_share(processes.world_size())
        self.network, self.batches, self.settings, self.seed = network, batches, settings, seed
        self.model = network if model is None else model
        self.device = batches.device
        self.schedule, self.prediction = schedule.to(self.device), prediction
        self.autocast, self.scaler = autocast, scaler
        self.flat = FlatParameters(network)
        self.optimizer = torch.optim.AdamW(
            [self.flat.vector], settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.ema = EMA(self.flat, ramped(settings.ema_decay))
        widths = power_ema.TRACKED_SIGMA_REL if settings.snapshots else ()
        self.tracks = {width: EMA(self.flat, partial(power_ema.decay, width)) for width in widths}
        name = settings.loss_weight or PLAIN[prediction]
        check_weight(name, schedule)
        self.weight = make_weight(name, settings.loss_gamma)
        self.timesteps = TIMESTEP_SAMPLERS[settings.timestep_sampling](schedule.steps, self.device)
        self.guard = NonFiniteGuard(settings.max_nonfinite_skips + (FLOAT16_TRIALS if scaler else 0), self.device)
        self.phases = PhaseTimer(self.device)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.speed: list[dict[str, float]] = []
        self.best_loss, self.best = math.inf, self.ema_weights()
        # Since the last row of the history: losses, gradient norms, and how many were finite; then losses by quarter of the
        # levels, and how many fell into each.
        self.sums = torch.zeros(3 + 2 * len(QUARTERS), device=self.device)
        self.quarters = torch.arange(len(QUARTERS), device=self.device)

    @property
    def seen(self) -> int:
        """Training images seen so far."""
        return self.step * self.settings.batch_size

    def train_step(self) -> None:
        """One optimizer step, on this process's share of the batch."""
        s, phases = self.settings, self.phases
        phases.enter("data")
        mine = processes.local_slice(s.batch_size)
        torch.manual_seed(seed_of(self.seed, "train", self.seen))
        x0, labels = self.batches.batch(self.seen, s.batch_size, mine)
        labels, known = self.tell(x0, labels, mine)
        index, weight = self.timesteps.draw(s.batch_size)
        shape = (s.batch_size, *x0.shape[2:], x0.shape[1])
        eps = torch.randn(shape, device=self.device)[mine].permute(0, 3, 1, 2)
        torch.manual_seed(seed_of(self.seed, "dropout", self.seen, processes.rank()))
        inputs = (x0, labels, index[mine], eps, weight[mine], *([] if known is None else [known]))
        pieces = list(zip(*(value.tensor_split(s.gradient_accumulation) for value in inputs), strict=True))
        losses = torch.cat([self._accumulate(*piece, last=piece is pieces[-1]) for piece in pieces])
        losses = processes.all_gather_rows(losses, s.batch_size)
        self.timesteps.update(index, losses)
        phases.enter("update")
        norm = self._update()
        good = norm.isfinite()
        row = torch.stack([(losses * weight).mean(), norm, torch.ones_like(norm)])
        self.sums += torch.where(good, torch.cat([row, self._by_quarter(index, losses)]), 0)
        self.step += 1
        self.guard.note(self.step, ~good)
        for average in (self.ema, *self.tracks.values()):
            average.update(self.step)

    def _accumulate(
        self, x0: Tensor, labels: Tensor, index: Tensor, eps: Tensor, weight: Tensor, known: Tensor | None = None, *, last: bool
    ) -> Tensor:
        """Add the gradient of some images' share of the batch's mean loss; returns their losses, without weights (b,)."""
        # Gradients meet those of the other processes once, with the last piece.
        with nullcontext() if last or processes.world_size() == 1 else self.model.no_sync():
            self.phases.enter("forward")
            losses = self._losses(self.model, x0, labels, index, eps, known)
            # DistributedDataParallel takes the mean over processes; the loss is a sum over them.
            loss = (weight * losses).sum() * (processes.world_size() / self.settings.batch_size)
            self.phases.enter("backward")
            (self.scaler.scale(loss) if self.scaler else loss).backward()
        return losses.detach()

    def _by_quarter(self, index: Tensor, losses: Tensor) -> Tensor:
        """Sums of losses (B,) over images whose level index (B,) lies in each quarter of 1..T, and how many do, (8,)."""
        inside = ((index - 1) * len(QUARTERS) // self.schedule.steps)[:, None] == self.quarters
        return torch.cat([(losses[:, None] * inside).sum(0), inside.sum(0).to(losses.dtype)])

    def _losses(self, model: nn.Module, x0: Tensor, labels: Tensor, index: Tensor, eps: Tensor, known: Tensor | None) -> Tensor:
        """Weighted losses of images (b, C, H, W) at levels index (b,) with noise eps, (b,)."""
        with self.autocast():
            return diffusion_loss(model, self.schedule, x0, labels, index, eps, self.prediction, self.weight, known)

    def probe(self, model: nn.Module) -> None:
        """Use a model as a training step does, forwards and backwards, without waiting for other processes."""
        mine = processes.local_slice(self.settings.batch_size)
        x0, labels = self.batches.batch(0, self.settings.batch_size, mine)
        labels, known = self.tell(x0, labels, mine)
        x0, labels, known = (
            value if value is None else value.tensor_split(self.settings.gradient_accumulation)[0]
            for value in (x0, labels, known)
        )
        eps = torch.zeros(len(x0), *x0.shape[2:], x0.shape[1], device=self.device).permute(0, 3, 1, 2)
        index = torch.ones(len(x0), dtype=torch.int64, device=self.device)
        with nullcontext() if processes.world_size() == 1 else model.no_sync():
            self._losses(model, x0, labels, index, eps, known).sum().backward()

    def _update(self) -> Tensor:
        """One step of the optimizer, left out where the gradient is not finite; returns the gradient's norm before clipping."""
        assert self.flat.grads_attached()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step)
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_([self.flat.vector], self.settings.gradient_clip)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            # How GradScaler has a fused optimizer leave a step out, without reading the gradient.
            self.optimizer.grad_scale, self.optimizer.found_inf = None, (~norm.isfinite()).float()
            self.optimizer.step()
        self.flat.vector.grad.zero_()
        return norm

    def tell(self, x0: Tensor, labels: Tensor, mine: slice) -> tuple[Tensor, Tensor | None]:
        """What the network is told of this process's images (b, C, H, W) of classes (b,): labels as it takes them, and known
        pixels or None. Each is left out at the chance that classifier-free guidance needs (Ho & Salimans 2022)."""

        def chances() -> Tensor:
            return torch.rand(self.settings.batch_size, device=self.device)[mine]

        network, dropout = self.network, self.settings.condition_dropout
        dropped = chances() < dropout
        if network.takes_text:
            labels = network.condition.describe(labels, chances())
        if network.takes_labels:
            labels = network.condition.drop(labels, dropped)
        if not network.takes_mask:
            return labels, None
        masks = random_masks(self.settings.batch_size, *x0.shape[2:], self.device)[mine]
        return labels, masked_input(x0, masks.masked_fill((chances() < dropout)[:, None, None, None], 0))

    def read_sums(self) -> dict[str, float]:
        """Mean loss, over all levels and by their quarters, and gradient norm since the last call; what no step gave a finite
        value for is missing. This waits for the device."""
        losses, norms, count, *quarters = self.sums.tolist()
        self.sums.zero_()
        if not count:
            return {}
        pairs = zip(QUARTERS, quarters[: len(QUARTERS)], quarters[len(QUARTERS) :], strict=True)
        by_quarter = {f"loss_t/{name}": total / images for name, total, images in pairs if images}
        return {"loss": losses / count, "gradient_norm": norms / count, **by_quarter}

    @torch.no_grad()
    def validation_loss(self, split: Split) -> float:
        """Mean loss of the EMA on up to 2,000 test images, always with the same noise and with levels spread over 1..T."""
        count = min(len(split.images), VALIDATION_IMAGES)
        generator = torch.Generator().manual_seed(seed_of(self.seed, "validation"))
        index = torch.linspace(1, self.schedule.steps, count).round().long()[torch.randperm(count, generator=generator)]

        def batch_loss(start: int) -> float:
            part = slice(start, min(start + VALIDATION_BATCH, count))
            x0 = to_model_range(to_tensor(split.images[part]))
            noise = torch.Generator().manual_seed(seed_of(self.seed, "validation", start))
            eps = torch.randn(x0.shape, generator=noise)
            inputs = x0, eps, index[part], torch.tensor(split.labels[part])
            x0, eps, levels, labels = (value.to(self.device) for value in inputs)
            masks = random_masks(len(x0), *x0.shape[2:], torch.device("cpu"), noise) if self.network.takes_mask else None
            known = None if masks is None else masked_input(x0, masks.to(self.device))
            losses = self._losses(self.network, x0, labels, levels, eps, known)
            return losses.cpu().double().sum().item()

        with self.averaged():
            return sum(processes.map_over_ranks(range(0, count, VALIDATION_BATCH), batch_loss)) / count

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """A context in which the network holds its EMA weights and is in eval mode."""
        self.ema.swap()
        try:
            yield self.network.eval()
        finally:
            self.network.train()
            self.ema.swap()

    def ema_weights(self) -> dict[str, Tensor]:
        """A copy of the EMA weights."""
        return {name: value.clone() for name, value in self.ema.state_dict().items()}

    def state_dict(self) -> dict:
        """All that a resumed training needs."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "tracks": {width: track.state_dict() for width, track in self.tracks.items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else {},
            "timesteps": self.timesteps.state_dict(),
            "streak": self.guard.streak,
            "sums": self.sums,
            "history": self.history,
            "speed": self.speed,
            "best_loss": self.best_loss,
            "best": self.best,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state_dict of an equal training."""
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        for width, track in self.tracks.items():
            track.load_state_dict(state["tracks"][width])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler and state["scaler"]:  # none if the state was saved in another precision
            self.scaler.load_state_dict(state["scaler"])
        self.timesteps.load_state_dict(state["timesteps"])
        self.guard.streak, self.sums = (state[name].to(self.device) for name in ("streak", "sums"))
        self.step, self.history, self.speed = state["step"], state["history"], state["speed"]
        self.best_loss = state["best_loss"]
        self.best = {name: value.to(self.device) for name, value in state["best"].items()}
