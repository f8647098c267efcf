"""What the network is told beside the time: a condition is added to the time embedding."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class NoCondition(nn.Module):
    """The embedding as it is; labels are ignored."""

    classes = 0

    def __init__(self, classes: int, embedding: int):
        super().__init__()

    def forward(self, embedding: Tensor, labels: Tensor | None) -> Tensor:
        return embedding


class ClassCondition(nn.Module):
    """Adds a learned vector per class: labels (B,) in 0..classes, where `classes` itself means "no class", as does None."""

    def __init__(self, classes: int, embedding: int):
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, embedding)

    def forward(self, embedding: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            labels = torch.full(embedding.shape[:1], self.classes, device=embedding.device)
        return embedding + self.table(labels)


CONDITIONINGS: dict[str, Callable[[int, int], nn.Module]] = {"none": NoCondition, "class": ClassCondition}
