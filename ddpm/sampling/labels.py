"""The conditioning of images: classes by name or number and texts, as tensors that the network receives."""

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.networks.captions import split_words
from ddpm.sampling.model import DiffusionModel

NO_CLASS = "none"  # means no class, where no class is called so
MAX_LISTED = 20  # class names in a message
# The name or number of a class as text, its index, or None for no class.
Label = str | int | None


def _named_class(names: Sequence[str], name: str) -> int | None:
    """Returns the index of a class name, in any case if no other name has the same letters, or None."""
    for form in (str.strip, lambda text: text.strip().casefold()):
        if (text := form(name)) in (forms := [form(each) for each in names]):
            return forms.index(text)
    return None


def class_index(model: DiffusionModel, label: Label) -> int | None:
    """Returns the index of a class, None for no class: a name comes first, in any case, then `none`, then the index itself where
    no class is called by a number.

    Raises InputError for an unknown class.
    """
    if label is None:
        return None
    names = model.data["class_names"]
    if not isinstance(label, str):
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(names):
            raise InputError(
                f"{label!r} is no class of this model; give a name, or a number from 0 to {len(names) - 1}", key="label"
            )
        return label
    text = label.strip()
    if (index := _named_class(names, text)) is not None:
        return index
    if text == NO_CLASS:
        return None
    has_numbers = any(each.strip().isdecimal() for each in names)
    # Python refuses to read numbers of thousands of digits.
    if text.isdecimal() and len(text) < 10 and int(text) < len(names) and not has_numbers:
        return int(text)
    near = difflib.get_close_matches(text, names, n=1) if not text.lstrip("-").isdecimal() else []
    listed = ", ".join(names[:MAX_LISTED]) + (f" and {len(names) - MAX_LISTED:,} more" if len(names) > MAX_LISTED else "")
    or_number = "" if has_numbers else f", or a number from 0 to {len(names) - 1}"
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    raise InputError(f"{text[:80]!r} is no class of this model{guess}; give one of {listed}{or_number}", key="label")


def split_labels(model: DiffusionModel, labels: Sequence[Label]) -> list[Label]:
    """Returns labels with each list such as `3,7` replaced by its parts, unless a class is called so."""
    names = model.data["class_names"]
    whole = (not isinstance(label, str) or _named_class(names, label) is not None for label in labels)
    return [part for label, one in zip(labels, whole, strict=True) for part in ([label] if one else label.split(","))]


def proportional_conditioning(
    model: DiffusionModel, count: int, held_out_captions: bool = False
) -> tuple[Tensor | None, list[str] | None, Tensor | None]:
    """Returns the conditioning of images whose scores count: (class ids (N,), captions, what the network receives).

    Class ids are those of `proportional_labels`. Captions are those of a text network, which receives their word ids (N, L).
    Each may be None.
    """
    labels = model.proportional_labels(count)
    if labels is None or not model.network.takes_text:
        return labels, None, labels
    captions = model.captions(labels, held_out_captions)
    return labels, captions, model.word_ids(captions)


def conditioning_for(
    model: DiffusionModel, count: int, labels: Sequence[Label] = (), texts: Sequence[str] = (), guidance: float = 1.0
) -> tuple[Tensor | None, list[str]]:
    """Returns the conditioning of `count` images: (class ids (N,), word ids (N, L) or None; a caption for each image).

    labels: classes as in `class_index`, or lists such as `3,7`, used in turn.
    texts: texts, used in turn; an empty one is no class. Without labels and texts the classes are used in turn.
    guidance: 0 is no conditioning.

    Raises InputError for what the model does not take or know, and for labels or texts that guidance 0 would ignore.
    """
    labels, names = split_labels(model, labels), model.data["class_names"]
    if count == 1 and len(labels) > 1:
        raise InputError(f"{len(labels)} classes for one image; give one", key="label")
    if labels and texts:
        raise InputError("cannot be given together with label; give one of them", key="text")
    if labels and not model.network.takes_labels:
        raise InputError("this model takes no class (model.conditioning); leave it out", key="label")
    chosen = [class_index(model, label) for label in labels]
    if guidance == 0 and (texts or any(index is not None for index in chosen)):
        raise InputError("0 draws without class or text; leave label and text out, or raise it", key="guidance")
    if guidance == 0:
        return None, [""] * count
    if texts:
        if not all(split_words(text) for text in texts):
            _check_supports_no_class(model)
        ids = model.word_ids(texts)
        turns = torch.arange(count) % len(texts)
        return ids[turns.to(ids.device)], [texts[k] for k in turns.tolist()]
    if not chosen:
        indices = model.balanced_labels(count)
        return indices, [""] * count if indices is None else [names[k] for k in indices.tolist()]
    if None in chosen:
        if set(chosen) != {None}:
            raise InputError(f"{NO_CLASS!r} cannot be mixed with classes; run the command twice", key="label")
        _check_supports_no_class(model)
        return None, [""] * count
    indices = [chosen[k % len(chosen)] for k in range(count)]
    return torch.tensor(indices, device=model.device), [names[k] for k in indices]


def _check_supports_no_class(model: DiffusionModel) -> None:
    """Raises InputError if the model was never trained without its labels."""
    if not model.supports_cfg:
        raise InputError(
            "no class needs a model that was trained without its class too (train.condition_dropout above 0)", key="label"
        )
