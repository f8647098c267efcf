"""How the noise levels of a training batch are drawn."""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from ddpm.core.params import OneOf

MAX_LOSS = 1e9


class Uniform:
    """Every level 1..T equally often, each image on its own (Ho et al. 2020, algorithm 1).

    `draw` uses the device's default generator. State lies on the device, and nothing is read from it.
    """

    def __init__(self, steps: int, device: torch.device):
        self.steps, self.device = steps, device

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Level indices (count,), and the weights (count,) that make the weighted mean of the loss one over uniform levels."""
        return torch.randint(1, self.steps + 1, (count,), device=self.device), torch.ones(count, device=self.device)

    def update(self, index: Tensor, loss: Tensor) -> None:
        """Learn from the losses (B,) of the levels index (B,)."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a state_dict."""


class Stratified(Uniform):
    """Levels evenly spread over 1..T within each batch, by one shared offset: uniform, with less noise in the loss
    (Kingma et al. 2021, app. I.1)."""

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        place = (torch.rand((), device=self.device) + torch.arange(count, device=self.device) / count) % 1
        index = (place * self.steps).long().clamp(max=self.steps - 1) + 1
        return index, torch.ones(count, device=self.device)


class LossAwareTimesteps(Uniform):
    """Levels with a large loss more often: p_t ~ sqrt(E[L_t^2]), with weights 1 / (T p_t) (Nichol & Dhariwal 2021, eq. 18).

    Uniform until every level was seen ten times; one draw in a thousand stays uniform. The paper keeps the last ten losses of
    each level; here E[L_t^2] is an exponential average over about as many.
    """

    WARMUP, RATE, UNIFORM = 10, 0.1, 1e-3

    def __init__(self, steps: int, device: torch.device):
        super().__init__(steps, device)
        self.seen = torch.zeros(steps, device=device)
        self.square = torch.zeros(steps, device=device)

    def probabilities(self) -> Tensor:
        """p_t of the levels 1..T, (T,)."""
        root = self.square.sqrt()
        wanted = (1 - self.UNIFORM) * root / root.sum().clamp(min=1e-30) + self.UNIFORM / self.steps
        return torch.where((self.seen >= self.WARMUP).all(), wanted, torch.full_like(wanted, 1 / self.steps))

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        p = self.probabilities()
        index = torch.multinomial(p, count, replacement=True)
        return index + 1, 1 / (self.steps * p[index])

    def update(self, index: Tensor, loss: Tensor) -> None:
        # A matrix product, since adding by index is not deterministic on a GPU.
        chosen = (index[:, None] - 1 == torch.arange(self.steps, device=self.device)).float()
        count = chosen.sum(0)
        # A loss that is no number must not make every probability one that is none: the training loop reports it.
        finite = loss.float().nan_to_num(nan=0.0, posinf=MAX_LOSS).clamp(max=MAX_LOSS)
        mean = finite.square() @ chosen / count.clamp(min=1)
        # The first losses of a level are averaged plainly.
        rate = torch.where(count > 0, torch.clamp(count / (self.seen + count).clamp(min=1), min=self.RATE), 0)
        self.square = torch.lerp(self.square, mean, rate)
        self.seen = self.seen + count

    def state_dict(self) -> dict[str, Tensor]:
        return {"seen": self.seen, "square": self.square}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.seen, self.square = (state[name].to(self.device) for name in ("seen", "square"))


TIMESTEP_SAMPLERS: dict[str, Callable[[int, torch.device], Uniform]] = {
    "uniform": Uniform,
    "stratified": Stratified,
    "importance": LossAwareTimesteps,
}

TimestepSamplerName = Annotated[str, OneOf(TIMESTEP_SAMPLERS)]
