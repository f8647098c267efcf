"""Exponential moving averages of the weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def ramped(decay: float) -> Callable[[int], float]:
    """min(decay, (1 + step) / (10 + step)) of steps 1, 2, ...: the first, random weights are soon forgotten (TensorFlow's
    ExponentialMovingAverage with num_updates)."""
    return lambda step: min(decay, (1 + step) / (10 + step))


class EMA:
    """Shadow weights w <- d w + (1 - d) weights after each optimizer step, d = decay(step)."""

    def __init__(self, network: nn.Module, decay: Callable[[int], float]):
        self.decay = decay
        self.source = list(network.parameters())
        self.names = [name for name, _ in network.named_parameters()]
        self.shadow = [parameter.detach().clone() for parameter in self.source]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the current weights; step counts the optimizer steps made, from 1."""
        torch._foreach_lerp_(self.shadow, self.source, 1 - self.decay(step))

    def state_dict(self) -> dict[str, Tensor]:
        """Names and shadow weights, the names those of the network's parameters."""
        return dict(zip(self.names, self.shadow, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy saved shadow weights in."""
        for name, shadow in zip(self.names, self.shadow, strict=True):
            shadow.copy_(state[name])

    def swap(self) -> None:
        """Exchange the shadow weights with the network's own; called twice, it changes nothing."""
        for shadow, parameter in zip(self.shadow, self.source, strict=True):
            shadow.data, parameter.data = parameter.data, shadow.data
