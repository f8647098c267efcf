"""Exponential moving averages of the weights, which are kept in one vector."""

import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

ALIGNMENT = 32  # numbers, that is 128 bytes: kernels are faster on aligned tensors


class FlatParameters:
    """All parameters of a network in one `vector` (N,) and their gradients in `vector.grad`; the network's own become views.

    Optimizer and EMA then take one operation each instead of one per parameter. For the default network of 91 tensors this
    makes a training step 4 to 9 % faster than PyTorch's fused or foreach variants. Each parameter keeps its shape and memory
    format and starts at a multiple of 128 bytes; the gaps hold zeros, which no update changes.

    The network must not be moved afterwards, and its gradients must be set to zero, never to None.

    last: names of parameters that come at the end of the vector, such as those of another optimizer.
    first_part: the vector without these, (M,), as a parameter. last_parts: each of these, as a matrix (shape[0], columns).
    """

    def __init__(self, network: nn.Module, last: Collection[str] = ()):
        named = dict(sorted(network.named_parameters(), key=lambda item: item[0] in last))
        self.layout: dict[str, tuple[torch.Size, tuple[int, ...], int]] = {}
        size = 0
        for name, parameter in named.items():
            # The strides of a copy, which is dense even if the parameter is not.
            self.layout[name] = parameter.shape, torch.empty_like(parameter).stride(), size
            size += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        example = next(iter(named.values()))
        self.vector = nn.Parameter(torch.zeros(size, device=example.device, dtype=example.dtype))
        self.vector.grad = torch.zeros_like(self.vector)
        values, gradients = self.views(self.vector.detach()), self.views(self.vector.grad)
        for name, parameter in named.items():
            values[name].copy_(parameter.detach())
            parameter.data, parameter.grad = values[name], gradients[name]
        self._parameters, self._gradients = list(named.values()), list(gradients.values())
        places = [(self.layout[name][2], named[name].shape) for name in named if name in last]
        self.first_part = self._part(0, (places[0][0] if places else size,))
        self.last_parts = [self._part(start, (shape[0], shape[1:].numel())) for start, shape in places]

    def _part(self, start: int, shape: tuple[int, ...]) -> nn.Parameter:
        """Returns a part of the vector as a parameter of its own, which shares the values and the gradient."""
        part = slice(start, start + math.prod(shape))
        parameter = nn.Parameter(self.vector.detach()[part].view(shape))
        parameter.grad = self.vector.grad[part].view(shape)
        return parameter

    def grads_attached(self) -> bool:
        """Returns whether the network's gradients are still views of the vector's; setting one to None detaches it."""
        return all(parameter.grad is view for parameter, view in zip(self._parameters, self._gradients, strict=True))

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Returns views of any vector (N,) of this layout, by the names of the parameters."""
        return {name: vector.as_strided(*place) for name, place in self.layout.items()}


def ramped(decay: float) -> Callable[[int], float]:
    """Returns the decay min(decay, (1 + step) / (10 + step)) of steps 1, 2, ..., which forgets the random initial weights soon.

    It is that of TensorFlow's ExponentialMovingAverage with num_updates.
    """
    return lambda step: min(decay, (1 + step) / (10 + step))


class EMA:
    """Averaged weights: shadow <- d shadow + (1 - d) weights after each optimizer step, with d = decay(step)."""

    def __init__(self, weights: FlatParameters, decay: Callable[[int], float]):
        self.weights, self.decay = weights, decay
        self.shadow = weights.vector.detach().clone()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Averages in the current weights; `step` counts the optimizer steps taken, from 1."""
        self.shadow.lerp_(self.weights.vector, 1 - self.decay(step))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the averaged weights by the names of the network's parameters."""
        return self.weights.views(self.shadow)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores a state_dict."""
        for name, shadow in self.state_dict().items():
            shadow.copy_(state[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the averaged weights with the network's own; a second call restores both."""
        held = self.shadow.clone()
        self.shadow.copy_(self.weights.vector)
        self.weights.vector.copy_(held)
