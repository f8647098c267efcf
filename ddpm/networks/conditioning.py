"""What the network is told beside the time: what the image shows, added to the time embedding, and pixels that are known.

What an image shows is its class or a caption. A class number tells every network: one that reads captions takes it for the first
caption of the class.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddpm.networks.captions import PADDING, START, Vocabulary, caption_table

TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 64, 2, 4


class NoConditioning(nn.Module):
    """The embedding as it is; labels are ignored."""

    def __init__(self, class_names: Sequence[str], embedding: int):
        super().__init__()

    def forward(self, embedding: Tensor, labels: Tensor | None) -> Tensor:
        return embedding


class ClassEmbedding(nn.Module):
    """Adds a learned vector per class: labels (B,) in 0..classes, where `classes` itself means "no class", as does None."""

    def __init__(self, class_names: Sequence[str], embedding: int):
        super().__init__()
        self.classes = len(class_names)
        self.table = nn.Embedding(self.classes + 1, embedding)

    def forward(self, embedding: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            labels = torch.full(embedding.shape[:1], self.classes, device=embedding.device)
        return embedding + self.table(labels)

    def drop(self, labels: Tensor, dropped: Tensor) -> Tensor:
        """Labels (B,), those where `dropped` (B,) replaced by "no class"."""
        return labels.masked_fill(dropped, self.classes)


class TextEncoder(nn.Module):
    """Adds what a small transformer (Vaswani et al. 2017), trained with the network, makes of a caption.

    labels: word ids (B, L) of `Vocabulary.encode`, or class numbers (B,), which stand for the first caption of the class. A
    caption without words means "no caption", as does None.
    """

    def __init__(self, class_names: Sequence[str], embedding: int):
        super().__init__()
        self.vocabulary = Vocabulary(class_names)
        self.words = nn.Embedding(START + 1 + len(self.vocabulary.words), TEXT_WIDTH, padding_idx=PADDING)
        self.places = nn.Parameter(0.02 * torch.randn(1 + self.vocabulary.longest, TEXT_WIDTH))
        layer = nn.TransformerEncoderLayer(
            TEXT_WIDTH, TEXT_HEADS, 2 * TEXT_WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, TEXT_LAYERS, nn.LayerNorm(TEXT_WIDTH), enable_nested_tensor=False)
        self.out = nn.Linear(TEXT_WIDTH, embedding)
        # Made from the class names, so not part of the weights.
        self.register_buffer("captions", caption_table(class_names, self.vocabulary), persistent=False)

    def forward(self, embedding: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            labels = torch.full((len(embedding), 1), START, device=embedding.device)
        elif labels.ndim == 1:
            labels = self.captions[labels, 0]
        read = self.layers(self.words(labels) + self.places[: labels.shape[1]], src_key_padding_mask=labels == PADDING)
        # START has seen all words; it stands for the caption.
        return embedding + self.out(read[:, 0])

    def describe(self, labels: Tensor, draws: Tensor) -> Tensor:
        """A caption (B, L) of each class in labels (B,), chosen by a draw (B,) in [0, 1)."""
        return self.captions[labels, (draws * self.captions.shape[1]).long()]

    def drop(self, labels: Tensor, dropped: Tensor) -> Tensor:
        """Captions (B, L), those where `dropped` (B,) replaced by "no caption"."""
        words = torch.arange(labels.shape[1], device=labels.device) > 0
        return labels.masked_fill(dropped[:, None] & words, PADDING)


class Conditioning(NamedTuple):
    """content: what takes class or caption; masked: whether the network sees known pixels and where they are."""

    content: Callable[[Sequence[str], int], nn.Module]
    takes_mask: bool = False


CONDITIONINGS: dict[str, Conditioning] = {
    "none": Conditioning(NoConditioning),
    "class": Conditioning(ClassEmbedding),
    "text": Conditioning(TextEncoder),
    "mask": Conditioning(NoConditioning, takes_mask=True),
    "class+mask": Conditioning(ClassEmbedding, takes_mask=True),
    "text+mask": Conditioning(TextEncoder, takes_mask=True),
}


def masked_input(images: Tensor, mask: Tensor) -> Tensor:
    """What a masked network is shown, (B, C + 1, H, W): images (B, C, H, W) in [-1, 1] where mask (B, 1, H, W) is 1, 0
    elsewhere, and the mask itself."""
    return torch.cat([images * mask, mask.to(images)], dim=1)
