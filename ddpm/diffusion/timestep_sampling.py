"""Samplers of the noise levels of a training batch."""

from typing import Annotated

import torch
from torch import Tensor

from ddpm.core.params import OneOf

MAX_LOSS = 1e9


class Uniform:
    """Draws every level 1..T with the same probability, independently for each image (Ho et al. 2020, algorithm 1).

    `draw` uses the default generator of the device. The state stays on the device; no value is read back.
    """

    def __init__(self, steps: int, device: torch.device):
        self.steps, self.device = steps, device

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns level indices 1..T and weights, both (count,), with which the mean loss is that of uniform levels."""
        return torch.randint(1, self.steps + 1, (count,), device=self.device), torch.ones(count, device=self.device)

    def spread(self, count: int) -> Tensor:
        """Returns `count` level indices on the CPU, spread evenly over those that are drawn."""
        return torch.linspace(1, self.steps, count).round().long()

    def update(self, index: Tensor, loss: Tensor) -> None:
        """Takes account of the losses (B,) at the levels index (B,)."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores a state_dict."""


class Stratified(Uniform):
    """Spreads the levels of each batch evenly over 1..T, with one random offset (Kingma et al. 2021, app. I.1).

    Each image's level is uniform; the mean loss of a batch varies less.
    """

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        u = (torch.rand((), device=self.device) + torch.arange(count, device=self.device) / count) % 1
        index = (u * self.steps).long().clamp(max=self.steps - 1) + 1
        return index, torch.ones(count, device=self.device)


class LossAwareTimesteps(Uniform):
    """Draws levels with p_t ~ sqrt(E[L_t^2]) and weights 1 / (T p_t) (Nichol & Dhariwal 2021, eq. 18).

    The levels are uniform until each was drawn ten times, and one in a thousand afterwards. The paper keeps the last ten losses
    of each level; here E[L_t^2] is an exponential average of about the same length.
    """

    WARMUP, RATE, UNIFORM = 10, 0.1, 1e-3

    def __init__(self, steps: int, device: torch.device):
        super().__init__(steps, device)
        self.count = torch.zeros(steps, device=device)
        self.square = torch.zeros(steps, device=device)

    def probabilities(self) -> Tensor:
        """Returns p_t of the levels 1..T, (T,)."""
        root = self.square.sqrt()
        p = (1 - self.UNIFORM) * root / root.sum().clamp(min=1e-30) + self.UNIFORM / self.steps
        return torch.where((self.count >= self.WARMUP).all(), p, torch.full_like(p, 1 / self.steps))

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        p = self.probabilities()
        index = torch.multinomial(p, count, replacement=True)
        return index + 1, 1 / (self.steps * p[index])

    def update(self, index: Tensor, loss: Tensor) -> None:
        # A matrix product, because index_add_ is not deterministic on a GPU.
        one_hot = (index[:, None] - 1 == torch.arange(self.steps, device=self.device)).float()
        count = one_hot.sum(0)
        # A loss that is not finite must not spoil the probabilities; NonFiniteGuard reports it.
        finite = loss.float().nan_to_num(nan=0.0, posinf=MAX_LOSS).clamp(max=MAX_LOSS)
        mean = finite.square() @ one_hot / count.clamp(min=1)
        # The first losses of a level are averaged with equal weights.
        rate = torch.where(count > 0, torch.clamp(count / (self.count + count).clamp(min=1), min=self.RATE), 0)
        self.square = torch.lerp(self.square, mean, rate)
        self.count = self.count + count

    def state_dict(self) -> dict[str, Tensor]:
        return {"count": self.count, "square": self.square}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.count, self.square = (state[name].to(self.device) for name in ("count", "square"))


TIMESTEP_SAMPLERS: dict[str, type[Uniform]] = {"uniform": Uniform, "stratified": Stratified, "importance": LossAwareTimesteps}

TimestepSamplerName = Annotated[str, OneOf(TIMESTEP_SAMPLERS)]
