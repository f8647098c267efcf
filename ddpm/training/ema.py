"""Exponential moving averages of the weights."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm.training.flat import Flat


def ramped(decay: float) -> Callable[[int], float]:
    """min(decay, (1 + step) / (10 + step)) of steps 1, 2, ...: the first, random weights are soon forgotten (TensorFlow's
    ExponentialMovingAverage with num_updates)."""
    return lambda step: min(decay, (1 + step) / (10 + step))


class EMA:
    """Shadow weights w <- d w + (1 - d) weights after each optimizer step, d = decay(step)."""

    def __init__(self, weights: Flat, decay: Callable[[int], float]):
        self.weights, self.decay = weights, decay
        self.shadow = weights.vector.detach().clone()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the current weights; step counts the optimizer steps made, from 1."""
        self.shadow.lerp_(self.weights.vector, 1 - self.decay(step))

    def state_dict(self) -> dict[str, Tensor]:
        """Names and shadow weights, the names those of the network's parameters."""
        return self.weights.views(self.shadow)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy saved shadow weights in."""
        for name, shadow in self.state_dict().items():
            shadow.copy_(state[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the shadow weights with the network's own; called twice, it changes nothing."""
        held = self.shadow.clone()
        self.shadow.copy_(self.weights.vector)
        self.weights.vector.copy_(held)
