"""A trained diffusion model, as samplers and scores need it: the network with the levels and the meaning of its output."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.core.files import InputError
from ddpm.core.params import lookup
from ddpm.core.paths import MODEL_DIR
from ddpm.diffusion.prediction import check_prediction
from ddpm.diffusion.schedule import Diffusion, NoiseSchedule
from ddpm.networks.captions import captions_of, split_words
from ddpm.networks.checkpoints import load_model
from ddpm.networks.registry import Network
from ddpm.sampling.denoiser import Denoiser, guided, network_denoiser


class DiffusionModel(NamedTuple):
    """network, the noise schedule it was trained on, what it predicts, and its data: shape (H, W, C), class names, identity.

    knows_no_class: whether classes or captions were dropped in training, so that guidance has something to lean away from.
    """

    network: Network
    schedule: NoiseSchedule
    prediction: str
    data: dict
    supports_cfg: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return tuple(self.data["shape"])

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def learns_variance(self) -> bool:
        """Whether the network puts out the variance of its steps too."""
        return self.network.outputs == 2 * self.shape[2]

    def denoiser(
        self,
        labels: Tensor | None,
        guidance: float = 1.0,
        interval: tuple[float, float] | None = None,
        known: Tensor | None = None,
    ) -> Denoiser:
        """The network as a denoiser of images that it is told labels and known pixels of (`UNet`), or None for nothing.

        Where guidance is not 1 it is `guided` towards the labels; the known pixels are told either way.
        """
        told = network_denoiser(self.network, self.prediction, labels, known)
        if guidance == 1:
            return told
        return guided(told, network_denoiser(self.network, self.prediction, None, known), guidance, interval)

    def balanced_labels(self, count: int) -> Tensor | None:
        """Labels (N,) with every class equally often, in turn (0, 1, 2, ..., 0, 1, ...); None if the network takes no class."""
        return torch.arange(count, device=self.device) % len(self.data["class_names"]) if self.network.takes_labels else None

    def captions(self, labels: Tensor, held_out_captions: bool = False) -> list[str]:
        """Return a caption for each of labels (N,); the templates of a class are used in turn.

        held_out_captions: use the templates that training did not show.
        """
        names = self.data["class_names"]
        of_class, turns = [captions_of(name, held_out_captions) for name in names], [0] * len(names)
        captions = []
        for label in labels.tolist():
            captions.append(of_class[label][turns[label] % len(of_class[label])])
            turns[label] += 1
        return captions

    def read(self, texts: Sequence[str]) -> Tensor:
        """Texts as the network takes them, word ids (N, L). Raises InputError for a network that reads none, and for words
        that it was not trained with."""
        if not self.network.takes_text:
            raise InputError("this model takes no text; train one with model.conditioning: text", key="text")
        return self.network.condition.vocabulary.encode(texts).to(self.device)


def from_config(network: Network, config: dict) -> DiffusionModel:
    """A model from a network and the content of its config.json."""
    diffusion = config["diffusion"]
    settings = Diffusion.model_validate({key: diffusion[key] for key in Diffusion.model_fields})
    schedule = settings.make(diffusion["schedule"])
    check_prediction(diffusion["prediction"], schedule)
    supports_cfg = network.takes_labels and config["training"].get("condition_dropout", 0) > 0
    return DiffusionModel(network, schedule, diffusion["prediction"], config["data"], supports_cfg)


def load(checkpoint: str | float, device: torch.device, folder: Path = MODEL_DIR) -> DiffusionModel:
    """Load a checkpoint of a model folder, by its name or the width of its EMA. Raises InputError if it is missing or damaged."""
    return from_config(*load_model(folder, checkpoint, device))


NO_CLASS = "none"


def class_number(model: DiffusionModel, name: str) -> int:
    """The number of a class by its name, in whatever case, or by the number itself. Raises InputError for an unknown one."""
    names = model.data["class_names"]
    for k, known in enumerate(names):
        if name.strip().lower() == known.lower():
            return k
    number = name.strip()
    # Python refuses to read numbers of thousands of digits.
    if number.isdecimal() and len(number) < 10 and int(number) < len(names):
        return int(number)
    return names.index(lookup(dict.fromkeys(names), name, "label"))


def tell(
    model: DiffusionModel, count: int, labels: Sequence[str] = (), texts: Sequence[str] = (), guidance: float = 1.0
) -> tuple[Tensor | None, list[str]]:
    """What the network is told of `count` images, and what to write beside each: labels (names or numbers of classes) or texts,
    in turn; without either, every class in turn. The label `none` is no class, and so is an empty text; with guidance 0 nothing
    is told.

    Raises InputError for what the model does not take or know, and for what guidance 0 would ignore.
    """
    if labels and texts:
        raise InputError("cannot be given together with label; a text says what to draw by itself", key="text")
    if guidance == 0 and (texts or set(labels) - {NO_CLASS}):
        raise InputError("0 draws without class or text; leave label and text out, or raise it", key="guidance")
    if guidance == 0:
        return None, [""] * count
    if texts:
        if not all(split_words(text) for text in texts):
            _check_knows_no_class(model)
        read = model.read(texts)
        turns = torch.arange(count) % len(texts)
        return read[turns.to(read.device)], [texts[k] for k in turns.tolist()]
    names = model.data["class_names"]
    if not labels:
        numbers = model.balanced_labels(count)
        return numbers, [""] * count if numbers is None else [names[k] for k in numbers.tolist()]
    if not model.network.takes_labels:
        raise InputError("this model takes no class (model.conditioning); leave it out", key="label")
    if set(labels) == {NO_CLASS}:
        _check_knows_no_class(model)
        return None, [""] * count
    if NO_CLASS in labels:
        raise InputError(f"{NO_CLASS!r} cannot be mixed with classes; draw twice", key="label")
    numbers = [class_number(model, name) for name in labels]
    chosen = [numbers[k % len(numbers)] for k in range(count)]
    return torch.tensor(chosen, device=model.device), [names[k] for k in chosen]


def _check_knows_no_class(model: DiffusionModel) -> None:
    if not model.supports_cfg:
        raise InputError(
            "no class needs a model that was trained without its class too (train.condition_dropout above 0)", key="label"
        )
