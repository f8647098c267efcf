"""Exponential moving average of the weights."""

import torch
from torch import Tensor, nn


class EMA:
    """Shadow weights w <- d w + (1 - d) weights after each optimizer step.

    The decay ramps up as min(decay, (1 + step) / (10 + step)), so that the first, random weights are soon forgotten
    (TensorFlow's ExponentialMovingAverage with num_updates).
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.source = list(network.parameters())
        self.names = [name for name, _ in network.named_parameters()]
        self.shadow = [parameter.detach().clone() for parameter in self.source]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the current weights; step counts the optimizer steps made, from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, self.source, 1 - decay)

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
