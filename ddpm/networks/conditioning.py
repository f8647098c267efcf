"""Conditioning: class or text embeddings added to the time embedding; masked image and mask concatenated to the input.

Class ids are accepted by every network; text networks map an id to that class's first caption.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddpm.networks.captions import PADDING, START, Vocabulary, caption_table

TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 64, 2, 4
AUGMENTATION_PARAMETERS = 9  # of each image, see ddpm/training/augment.py


class NoConditioning(nn.Module):
    """Returns the embedding unchanged; labels are ignored."""

    takes_labels = takes_text = False

    def __init__(self, class_names: Sequence[str], embedding: int):
        super().__init__()

    def forward(self, embedding: Tensor, labels: Tensor | None) -> Tensor:
        return embedding


class ClassEmbedding(nn.Module):
    """Adds a learned vector per class to the embedding (B, E).

    labels: class ids (B,) from 0 to `classes`; `classes` itself means "no class", and so does None.
    """

    takes_labels, takes_text = True, False

    def __init__(self, class_names: Sequence[str], embedding: int):
        super().__init__()
        self.classes = len(class_names)
        self.table = nn.Embedding(self.classes + 1, embedding)

    def forward(self, embedding: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            labels = torch.full(embedding.shape[:1], self.classes, device=embedding.device)
        return embedding + self.table(labels)

    def drop(self, labels: Tensor, dropped: Tensor) -> Tensor:
        """Returns labels (B,) with those where `dropped` (B,) is true replaced by "no class"."""
        return labels.masked_fill(dropped, self.classes)


class TextEncoder(nn.Module):
    """Adds a caption's encoding by a small transformer (Vaswani et al. 2017), trained with the network, to the embedding (B, E).

    labels: word ids (B, L) of `Vocabulary.encode`, or class ids (B,), which mean the first caption of the class. A caption
    without words means "no caption", and so does None.
    """

    takes_labels = takes_text = True

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
        # It follows from the class names, so it is not saved with the weights.
        self.register_buffer("captions", caption_table(class_names, self.vocabulary), persistent=False)

    def forward(self, embedding: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            labels = torch.full((len(embedding), 1), START, device=embedding.device)
        elif labels.ndim == 1:
            labels = self.captions[labels, 0]
        encoded = self.layers(self.words(labels) + self.places[: labels.shape[1]], src_key_padding_mask=labels == PADDING)
        # START attends to all words, so its encoding represents the caption.
        return embedding + self.out(encoded[:, 0])

    def describe(self, labels: Tensor, u: Tensor) -> Tensor:
        """Returns a caption (B, L) of each class in labels (B,), chosen by random numbers u (B,) in [0, 1)."""
        return self.captions[labels, (u * self.captions.shape[1]).long()]

    def drop(self, labels: Tensor, dropped: Tensor) -> Tensor:
        """Returns captions (B, L) with those where `dropped` (B,) is true replaced by "no caption"."""
        words = torch.arange(labels.shape[1], device=labels.device) > 0
        return labels.masked_fill(dropped[:, None] & words, PADDING)


class Conditioning(NamedTuple):
    """A value of `model.conditioning`.

    embed_labels: class of the module that adds labels to the time embedding.
    takes_mask: whether the network also receives known pixels (`masked_input`).
    """

    embed_labels: Callable[[Sequence[str], int], nn.Module]
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
    """Returns the known pixels and the mask, (B, C + 1, H, W), which a masked network takes as further channels.

    images: (B, C, H, W) in [-1, 1]. mask: (B, 1, H, W), 1 where a pixel is known; the others become 0.
    """
    return torch.cat([images * mask, mask.to(images)], dim=1)
