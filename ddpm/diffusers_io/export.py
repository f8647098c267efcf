"""Writes a model as a folder that diffusers' DDPMPipeline and DDIMPipeline load.

A pipeline tells its network nothing but the time. What ours is told beside never changes while it draws, so it goes into the
weights, exactly: the vector of a class or a caption into a bias; known pixels, of which there are none, away with the channels
that would hold them.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ddpm.core.files import InputError, atomic, atomic_folder, check_folder, read_json, write_json, write_text
from ddpm.diffusers_io.model_card import CardInfo, write_card
from ddpm.diffusers_io.scheduler_config import write_scheduler
from ddpm.diffusers_io.state_dict_map import CLASSES, FIRST, LAST, LINEAR_OUT, to_theirs
from ddpm.diffusers_io.unet_config import write_config
from ddpm.editing import tasks
from ddpm.networks.conditioning import ClassEmbedding
from ddpm.networks.unet import CompatOptions, UNet, UNetSettings
from ddpm.plots.image_grid import save_grid
from ddpm.sampling import generate, progress
from ddpm.sampling.model import NO_CLASS, DiffusionModel, conditioning_for
from ddpm.sampling.plan import make_plan

# Of diffusers; these files are as its classes of that version read and write them.
VERSION = "0.38.0"
WEIGHTS = "diffusion_pytorch_model.safetensors"
UNET, SCHEDULER, INDEX, CARD, PICTURE, RECORD = "unet", "scheduler", "model_index.json", "README.md", "samples.png", "ddpm.json"
FILES = (UNET, SCHEDULER, INDEX, CARD, PICTURE, RECORD)
QUANTILE = 0.995


class ExportOptions(NamedTuple):
    """What to export: the class or text that the network is told, or all classes kept; and how its scheduler draws."""

    label: str | None = None
    text: str | None = None
    keep_classes: bool = False
    variance: str = "small"
    thresholding: str = "clip"
    timestep_spacing: str = "trailing"


class Picture(NamedTuple):
    """Samples: images uint8 (N, H, W, C), a caption for each, and how many steps of DDIM drew them."""

    images: np.ndarray
    captions: list[str]
    steps: int


def check_out(path: Path) -> None:
    """Raises InputError, before any work, for a folder that an export cannot be written to."""
    check_folder(path, FILES, _is_export, "export")


def _is_export(folder: Path) -> bool:
    try:
        return "export" in read_json(folder / RECORD, "train")
    except InputError:
        return False


def check_wishes(model: DiffusionModel, wishes: ExportOptions) -> None:
    """Raises InputError, beginning with the option, for what this model cannot be exported with."""
    if not isinstance(model.network, UNet):
        raise InputError("only a network of type unet can be exported", key="model.type")
    if wishes.variance == "learned" and not model.learns_variance:
        raise InputError(
            "'learned' needs a model trained with diffusion.learned_variance: true; use small or large", key="variance"
        )
    if not wishes.keep_classes:
        if model.network.takes_labels and not (model.supports_cfg or wishes.label or wishes.text):
            raise InputError(
                "this model was always told what to draw (train.condition_dropout), so say what the export draws, by "
                "--label or --text, or keep all classes by --keep-classes",
                key="label",
            )
        return
    if not isinstance(model.network.condition, ClassEmbedding):
        raise InputError("this model takes no class (model.conditioning); leave it out", key="keep_classes")
    if wishes.label or wishes.text is not None:
        raise InputError("keeps every class; leave label and text out", key="keep_classes")


def told(model: DiffusionModel, wishes: ExportOptions) -> tuple[Tensor | None, str]:
    """What the exported network is told, as ours takes it (1, ...) or None for nothing, and in words. Raises InputError as
    `conditioning_for` does."""
    nothing = [NO_CLASS] if model.network.takes_labels and wishes.text is None else []
    labels = [wishes.label] if wishes.label else nothing
    found, captions = conditioning_for(model, 1, labels, [] if wishes.text is None else [wishes.text])
    return found, captions[0]


def fold(model: DiffusionModel, labels: Tensor | None, wishes: ExportOptions) -> dict[str, Tensor]:
    """The tensors of a UNet2DModel that computes what the network does when told the labels (1, ...) and no known pixels."""
    network, channels = model.network, model.shape[2]
    theirs = to_theirs(network)
    theirs[f"{FIRST}.weight"] = theirs[f"{FIRST}.weight"][:, :channels].contiguous()
    if wishes.variance != "learned":
        for kind in ("weight", "bias"):
            theirs[f"{LAST}.{kind}"] = theirs[f"{LAST}.{kind}"][:channels].contiguous()
    if wishes.keep_classes:
        theirs[CLASSES] = network.condition.table.weight.detach().cpu().clone()
    else:
        theirs[f"{LINEAR_OUT}.bias"] += _vector(network, labels)
    return theirs


@torch.inference_mode()
def _vector(network: UNet, labels: Tensor | None) -> Tensor:
    """What the labels add to the time embedding (E,)."""
    bias = network.time[-1].bias
    return network.condition(torch.zeros_like(bias)[None], labels)[0].cpu()


def draw(model: DiffusionModel, labels: Tensor | None, wishes: ExportOptions, count: int) -> Picture:
    """Samples of the model as it is exported, by DDIM."""
    captions = [""] * count
    if wishes.keep_classes:
        labels, captions = conditioning_for(model, count)
    else:
        labels = tasks.repeat_labels(labels, count)
    plan = make_plan(model, thresholding=wishes.thresholding)
    images = progress.collect_images(plan.label, generate.generate(model, plan, labels, count, seed=0))
    return Picture(images, captions, plan.nfe)


def export(
    model: DiffusionModel, config: dict[str, Any], out: Path, wishes: ExportOptions, facts: CardInfo, samples: int
) -> dict[str, Tensor]:
    """Write a model, whose config.json has that content, to the folder `out`; returns the exported weights.

    samples: how many images the model card shows; 0: none. Raises InputError for what this model cannot be exported with.
    """
    check_wishes(model, wishes)
    labels, words = told(model, wishes)
    settings, details = UNetSettings.model_validate(config["model"]), CompatOptions.model_validate(config.get("details", {}))
    weights = fold(model, labels, wishes)
    classes = len(weights[CLASSES]) if wishes.keep_classes else None
    unet = write_config(settings, details, model.shape, len(weights[f"{LAST}.bias"]), classes)
    scheduler = write_scheduler(
        model.schedule, model.prediction, wishes.variance, wishes.thresholding, QUANTILE, wishes.timestep_spacing
    )
    picture = draw(model, labels, wishes, samples) if samples else None
    count = sum(value.numel() for value in weights.values())
    facts = facts._replace(words=words, parameters=count, picture=picture.steps if picture else 0)
    versioned = {"_diffusers_version": VERSION}
    with atomic_folder(out, replace=True) as folder:
        write_json(folder / UNET / "config.json", unet | versioned)
        _write_weights(folder / UNET / WEIGHTS, weights)
        write_json(folder / SCHEDULER / "scheduler_config.json", scheduler | versioned)
        parts = {"scheduler": ["diffusers", scheduler["_class_name"]], "unet": ["diffusers", unet["_class_name"]]}
        write_json(folder / INDEX, {"_class_name": "DDPMPipeline", **versioned, **parts})
        write_json(folder / RECORD, {"export": {**wishes._asdict(), "checkpoint": facts.checkpoint}, **config})
        if picture:
            save_grid(folder / PICTURE, picture.images, picture.captions, None, 48)
        write_text(folder / CARD, write_card(config, facts))
    return weights


def _write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    data = save(weights, metadata={"format": "pt"})
    with atomic(path) as temporary:
        temporary.write_bytes(data)
