"""The trainer: one optimizer step of the network and its EMAs, the validation loss, and the state to resume from."""

import math
from collections.abc import Callable, Iterator, Sequence
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
from ddpm.training.augment import augment, random_parameters
from ddpm.training.ema import EMA, FlatParameters, ramped
from ddpm.training.masks import random_masks
from ddpm.training.monitor import FLOAT16_TRIALS, LossSums, NonFiniteGuard, PhaseTimer
from ddpm.training.optimizers import OPTIMIZERS, hidden_matrices
from ddpm.training.settings import Train

VALIDATION_IMAGES = 2_000
VALIDATION_BATCH = 500


class Trainer:
    """The state of one training: network, EMAs, optimizer and loss history.

    Randomness is a function of (seed, images seen, rank). Every step seeds PyTorch's default generator from them, so a resumed
    run repeats the noise, levels, augmentation and dropout of an uninterrupted one without a saved generator state. All but
    dropout is drawn for the whole batch in every process, so it does not depend on the number of processes.

    No step reads a value back from the device, which would make it wait; the sums of the losses are read for the log.

    model: the module that training calls, where it is not the network itself: compiled, or wrapped for several processes.
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
        self.flat = FlatParameters(network, hidden_matrices(network))
        self.optimizers = OPTIMIZERS[settings.optimizer](self.flat, settings.learning_rate, settings.weight_decay)
        # Without the ramp, an EMA keeps the weights of `train.init`, of which it is a copy here.
        decay = ramped(settings.ema_decay) if settings.init is None else lambda step: settings.ema_decay
        self.ema = EMA(self.flat, decay)
        tracked = power_ema.TRACKED_SIGMA_REL if settings.snapshots else ()
        self.tracks = {sigma_rel: EMA(self.flat, partial(power_ema.decay, sigma_rel)) for sigma_rel in tracked}
        name = settings.loss_weight or PLAIN[prediction]
        check_weight(name, schedule)
        self.weight = make_weight(name, settings.loss_gamma)
        self.timesteps = TIMESTEP_SAMPLERS[settings.timestep_sampling](schedule.steps, self.device)
        self.guard = NonFiniteGuard(settings.max_nonfinite_skips + (FLOAT16_TRIALS if scaler else 0), self.device)
        self.sums = LossSums(schedule.steps, self.device)
        self.phases = PhaseTimer(self.device)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.speed: list[dict[str, float]] = []
        self.best_value, self.best = math.inf, self.ema_weights()  # the lowest value of `best_by`, and its EMA weights

    @property
    def seen(self) -> int:
        """The number of training images used so far."""
        return self.step * self.settings.batch_size

    def train_step(self) -> None:
        """Takes one optimizer step (Ho et al. 2020, algorithm 1), on this process's share of the batch."""
        batch_size = self.settings.batch_size
        share = processes.local_slice(batch_size)
        self.phases.enter("data")
        torch.manual_seed(seed_of(self.seed, "train", self.seen))
        x0, labels, known, augmentation = self.inputs(self.seen, share)
        index, weight = self.timesteps.draw(batch_size)
        eps = torch.randn((batch_size, *x0.shape[2:], x0.shape[1]), device=self.device)[share].permute(0, 3, 1, 2)
        torch.manual_seed(seed_of(self.seed, "dropout", self.seen, processes.rank()))
        losses = self._backward(weight[share], x0, labels, index[share], eps, known, augmentation)
        losses = processes.all_gather_rows(losses, batch_size)
        self.timesteps.update(index, losses)
        self.phases.enter("update")
        norm = self._update()
        self.step += 1
        self.sums.add(losses, weight, index, norm)
        self.guard.note(self.step, ~norm.isfinite())
        for average in (self.ema, *self.tracks.values()):
            average.update(self.step)

    def _backward(self, *inputs: Tensor | None) -> Tensor:
        """Accumulates the gradient of the batch's mean loss in parts; returns the losses without importance weights, (b,)."""
        pieces = list(zip(*map(self._parts, inputs), strict=True))
        return torch.cat([self._accumulate(*piece, last=piece is pieces[-1]) for piece in pieces])

    def _parts(self, value: Tensor | None) -> Sequence[Tensor | None]:
        """Returns `train.gradient_accumulation` parts of a tensor, or as many None."""
        parts = self.settings.gradient_accumulation
        return [None] * parts if value is None else value.tensor_split(parts)

    def _accumulate(self, weight: Tensor, *inputs: Tensor | None, last: bool) -> Tensor:
        """Adds the gradient of some images' share of the mean loss; returns their losses, (b,). inputs: those of `_losses`."""
        # The gradients of all processes are added up once, with the last piece.
        with nullcontext() if last or processes.world_size() == 1 else self.model.no_sync():
            self.phases.enter("forward")
            losses = self._losses(self.model, *inputs)
            # DistributedDataParallel takes the mean over the processes; the loss is a sum over them.
            loss = (weight * losses).sum() * (processes.world_size() / self.settings.batch_size)
            self.phases.enter("backward")
            (self.scaler.scale(loss) if self.scaler else loss).backward()
        return losses.detach()

    def _losses(self, model: nn.Module, x0: Tensor, labels: Tensor, index: Tensor, eps: Tensor, *others: Tensor | None) -> Tensor:
        """Returns the weighted losses of images (b, C, H, W) at levels index (b,) with noise eps, (b,).

        others: known, augmentation, or None.
        """
        with self.autocast():
            return diffusion_loss(model, self.schedule, x0, labels, index, eps, self.prediction, self.weight, *others)

    def probe(self, model: nn.Module) -> None:
        """Runs a model forwards and backwards with the shapes of a training step, without waiting for other processes."""
        share = processes.local_slice(self.settings.batch_size)
        x0, labels, known, augmentation = (self._parts(value)[0] for value in self.inputs(0, share))
        eps = torch.zeros(len(x0), *x0.shape[2:], x0.shape[1], device=self.device).permute(0, 3, 1, 2)
        index = torch.ones(len(x0), dtype=torch.int64, device=self.device)
        with nullcontext() if processes.world_size() == 1 else model.no_sync():
            self._losses(model, x0, labels, index, eps, known, augmentation).sum().backward()

    def _update(self) -> Tensor:
        """Clips the gradient and updates the weights unless it is not finite; returns its norm before clipping."""
        assert self.flat.grads_attached()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.settings.learning_rate_at(self.step)
            if self.scaler:
                self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_([self.flat.vector], self.settings.gradient_clip)
        for optimizer in self.optimizers:
            # As GradScaler does it: the optimizer skips the step on the device, without a read-back.
            optimizer.grad_scale, optimizer.found_inf = None, (~norm.isfinite()).float()
            optimizer.step()
        if self.scaler:
            self.scaler.update()
        self.flat.vector.grad.zero_()
        return norm

    def inputs(self, seen: int, share: slice) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Returns (x0, labels, known, augmentation) of a share of the batch after the first `seen` images.

        augmentation: the parameters of the transformations of x0, (b, 9); None without augmentation.
        """
        batch_size, probability = self.settings.batch_size, self.settings.augment
        x0, labels = self.batches.batch(seen, batch_size, share)
        parameters = random_parameters(batch_size, probability, self.device)[share] if probability else None
        x0 = x0 if parameters is None else augment(x0, parameters)
        return x0, *self.conditioning(x0, labels, share), parameters

    def conditioning(self, x0: Tensor, labels: Tensor, share: slice) -> tuple[Tensor, Tensor | None]:
        """Returns (labels, known), the conditioning of this process's images (b, C, H, W) of classes (b,).

        A text network gets a random caption of each class, a masked network random masks; without a mask, known is None. Each is
        dropped with probability condition_dropout, for classifier-free guidance (Ho & Salimans 2022).
        """
        batch_size, network, dropout = self.settings.batch_size, self.network, self.settings.condition_dropout

        def uniform() -> Tensor:
            return torch.rand(batch_size, device=self.device)[share]

        dropped = uniform() < dropout
        if network.takes_text:
            labels = network.condition.describe(labels, uniform())
        if network.takes_labels:
            labels = network.condition.drop(labels, dropped)
        if not network.takes_mask:
            return labels, None
        masks = random_masks(batch_size, *x0.shape[2:], self.device)[share]
        return labels, masked_input(x0, masks.masked_fill((uniform() < dropout)[:, None, None, None], 0))

    @torch.no_grad()
    def validation_loss(self, split: Split) -> float:
        """Returns the mean loss of the EMA on up to 2,000 test images, with fixed noise and with evenly spread levels."""
        count = min(len(split.images), VALIDATION_IMAGES)
        generator = torch.Generator().manual_seed(seed_of(self.seed, "validation"))
        index = self.timesteps.spread(count)[torch.randperm(count, generator=generator)]

        def batch_loss(start: int) -> float:
            batch = slice(start, min(start + VALIDATION_BATCH, count))
            x0 = to_model_range(to_tensor(split.images[batch]))
            noise = torch.Generator().manual_seed(seed_of(self.seed, "validation", start))
            eps = torch.randn(x0.shape, generator=noise)
            inputs = [x0, torch.tensor(split.labels[batch]), index[batch], eps]
            if self.network.takes_mask:
                inputs.append(masked_input(x0, random_masks(len(x0), *x0.shape[2:], torch.device("cpu"), noise)))
            losses = self._losses(self.network, *(value.to(self.device) for value in inputs))
            return losses.cpu().double().sum().item()

        with self.averaged():
            return sum(processes.map_over_ranks(range(0, count, VALIDATION_BATCH), batch_loss)) / count

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Yields the network with its EMA weights and in eval mode; restores both at the end."""
        self.ema.swap()
        try:
            yield self.network.eval()
        finally:
            self.network.train()
            self.ema.swap()

    def ema_weights(self) -> dict[str, Tensor]:
        """Returns a copy of the EMA weights."""
        return {name: value.clone() for name, value in self.ema.state_dict().items()}

    def state_dict(self) -> dict:
        """Returns everything that a resumed training needs."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "tracks": {sigma_rel: track.state_dict() for sigma_rel, track in self.tracks.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict() if self.scaler else {},
            "timesteps": self.timesteps.state_dict(),
            "streak": self.guard.streak,
            "sums": self.sums.values,
            "history": self.history,
            "speed": self.speed,
            "best_value": self.best_value,
            "best": self.best,
        }

    def load_state_dict(self, state: dict) -> None:
        """Restores the state_dict of a training with the same settings."""
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        for sigma_rel, track in self.tracks.items():
            track.load_state_dict(state["tracks"][sigma_rel])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.scaler and state["scaler"]:  # empty if the state was saved in another precision
            self.scaler.load_state_dict(state["scaler"])
        self.timesteps.load_state_dict(state["timesteps"])
        self.guard.streak, self.sums.values = (state[name].to(self.device) for name in ("streak", "sums"))
        self.step, self.history, self.speed = state["step"], state["history"], state["speed"]
        self.best_value = state["best_value"]
        self.best = {name: value.to(self.device) for name, value in state["best"].items()}
