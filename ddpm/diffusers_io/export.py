"""Writes a model as a folder that diffusers' DDPMPipeline and DDIMPipeline load.

These unconditional pipelines pass only the time to the network. A fixed class or text embedding is therefore added to the last
bias of the time embedding. The input channels of masks, and the layer for the parameters of an augmentation, are left out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ddpm.core.files import InputError, atomic, atomic_folder, read_json, write_json, write_text
from ddpm.core.outputs import check_folder
from ddpm.diffusers_io.model_card import IMPORTED, LICENSE, CardInfo, ExportOptions, write_card
from ddpm.diffusers_io.scheduler_config import write_scheduler
from ddpm.diffusers_io.state_dict_map import CLASSES, LINEAR_OUT, to_diffusers
from ddpm.diffusers_io.unet_config import write_config
from ddpm.editing.tasks import repeat_labels
from ddpm.networks.conditioning import ClassEmbedding
from ddpm.networks.unet import CompatOptions, UNet, UNetSettings
from ddpm.plots.image_grid import save_grid
from ddpm.report.model_scores import Scores
from ddpm.sampling.generate import generate
from ddpm.sampling.labels import conditioning_for
from ddpm.sampling.model import DiffusionModel
from ddpm.sampling.plan import make_plan
from ddpm.sampling.progress import collect_images

# The version of diffusers whose file formats are written.
VERSION = "0.38.0"
WEIGHTS = "diffusion_pytorch_model.safetensors"
UNET, SCHEDULER, INDEX, CARD, PICTURE, RECORD = "unet", "scheduler", "model_index.json", "README.md", "samples.png", "ddpm.json"
FILES = (UNET, SCHEDULER, INDEX, CARD, PICTURE, RECORD)
QUANTILE = 0.995
PICTURE_TILE = 48


def check_out(path: Path) -> None:
    """Raises InputError if the folder cannot be written, or holds anything but an earlier export."""
    check_folder(path, FILES, _is_export, "export")


def _is_export(folder: Path) -> bool:
    try:
        return "export" in read_json(folder / RECORD, "train")
    except InputError:
        return False


def check_options(model: DiffusionModel, options: ExportOptions) -> None:
    """Raises InputError, whose key is the option, if this model cannot be exported with these options."""
    if not isinstance(model.network, UNet):
        raise InputError("only a network of type 'unet' can be exported", key="model.type")
    if options.variance == "learned" and not model.learns_variance:
        raise InputError(
            "'learned' needs a model trained with diffusion.learned_variance: true; use small or large", key="variance"
        )
    if not options.keep_classes:
        if model.network.takes_labels and not (model.supports_cfg or options.label or options.text):
            raise InputError(
                "needed, since this model was trained without condition dropout (train.condition_dropout); give --label or "
                "--text, or keep all classes by --keep-classes",
                key="label",
            )
        return
    if not isinstance(model.network.condition, ClassEmbedding):
        raise InputError("this model takes no class (model.conditioning); leave it out", key="keep_classes")
    if options.label or options.text is not None:
        raise InputError("keeps every class; leave label and text out", key="keep_classes")


def conditioning_of(model: DiffusionModel, options: ExportOptions) -> tuple[Tensor | None, str]:
    """Returns the fixed conditioning, (1,) or (1, L) or None, and its caption. Raises InputError for an unknown class or word."""
    unconditional = [None] if model.network.takes_labels and options.text is None else []
    texts = [] if options.text is None else [options.text]
    labels, captions = conditioning_for(model, 1, [options.label] if options.label else unconditional, texts)
    return labels, captions[0]


def fold(model: DiffusionModel, labels: Tensor | None, options: ExportOptions) -> dict[str, Tensor]:
    """Returns the state dict of a UNet2DModel that computes the network's output for fixed labels and without known pixels."""
    network, channels = model.network, model.shape[2]
    weights = to_diffusers(network)
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :channels].contiguous()
    if options.variance != "learned":
        for kind in ("weight", "bias"):
            weights[f"conv_out.{kind}"] = weights[f"conv_out.{kind}"][:channels].contiguous()
    if options.keep_classes:
        weights[CLASSES] = network.condition.table.weight.detach().cpu().clone()
    else:
        weights[f"{LINEAR_OUT}.bias"] += _embedding(network, labels)
    return weights


@torch.inference_mode()
def _embedding(network: UNet, labels: Tensor | None) -> Tensor:
    """Returns what the labels add to the time embedding (E,)."""
    bias = network.time[-1].bias
    return network.condition(torch.zeros_like(bias)[None], labels)[0].cpu()


def draw_picture(
    model: DiffusionModel, labels: Tensor | None, options: ExportOptions, count: int
) -> tuple[np.ndarray, list[str], int]:
    """Generates samples of the export by DDIM; returns images uint8 (N, H, W, C), captions, and the number of steps."""
    labels, captions = conditioning_for(model, count) if options.keep_classes else (repeat_labels(labels, count), [""] * count)
    plan = make_plan(model, thresholding=options.thresholding)
    images = collect_images(plan.label, generate(model, plan, labels, count))
    return images, captions, plan.nfe


def export(
    model: DiffusionModel,
    config: dict[str, Any],
    out: Path,
    options: ExportOptions,
    *,
    samples: int = 0,
    license: str | None = None,
    scores: Sequence[Scores] = (),
) -> dict[str, Tensor]:
    """Writes a model to the folder `out`; returns the exported weights.

    config: the content of the model's config.json.
    samples: number of images in the model card; 0 writes no picture.
    license: license in the model card; None is this project's for its own models, and none for imported ones.
    scores: scores in the model card.
    Raises InputError if the model cannot be exported with these options.
    """
    check_options(model, options)
    labels, caption = conditioning_of(model, options)
    settings, compat = UNetSettings.model_validate(config["model"]), CompatOptions.model_validate(config.get("compat", {}))
    weights = fold(model, labels, options)
    classes = len(weights[CLASSES]) if options.keep_classes else None
    unet = write_config(settings, compat, model.shape, len(weights["conv_out.bias"]), classes)
    scheduler = write_scheduler(
        model.schedule, model.prediction, options.variance, options.thresholding, QUANTILE, options.timestep_spacing
    )
    images, captions, steps = draw_picture(model, labels, options, samples) if samples else (None, [], 0)
    card = CardInfo(
        options=options,
        takes_labels=model.network.takes_labels,
        takes_mask=model.network.takes_mask,
        license=license or (LICENSE if config["data"].get("dataset") != IMPORTED else None),
        scores=scores,
        caption=caption,
        parameters=sum(value.numel() for value in weights.values()),
        picture_steps=steps,
    )
    version = {"_diffusers_version": VERSION}
    with atomic_folder(out, replace=True) as folder:
        write_json(folder / UNET / "config.json", unet | version)
        with atomic(folder / UNET / WEIGHTS) as temporary:
            temporary.write_bytes(save(weights, metadata={"format": "pt"}))
        write_json(folder / SCHEDULER / "scheduler_config.json", scheduler | version)
        parts = {"scheduler": ["diffusers", scheduler["_class_name"]], "unet": ["diffusers", unet["_class_name"]]}
        write_json(folder / INDEX, {"_class_name": "DDPMPipeline", **version, **parts})
        write_json(folder / RECORD, {"export": options._asdict(), **config})
        if images is not None:
            save_grid(folder / PICTURE, images, captions, None, PICTURE_TILE)
        write_text(folder / CARD, write_card(config, card))
    return weights
