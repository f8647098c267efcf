"""The model card of an export: a README.md with the metadata that model hubs read. Its text is model_card.md.j2."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ddpm.core.files import printable
from ddpm.plots.markdown import render
from ddpm.plots.numbers import number, supported
from ddpm.report.model_scores import Scores

# Names of metrics that are comparable within this project only.
FID_NAME = "FID in the features of the project's own classifier, not comparable with papers"
ACCURACY_NAME = "accuracy of the project's own classifier on the requested classes"
TASK = "unconditional-image-generation"
IMPORTED = "imported"
LICENSE = "mit"  # of this project
MAX_CLASSES = 20
MAX_STEPS = 50

# The title of a data set, and its name on hubs.
DATASETS = {
    "digits": ("the UCI handwritten digits of scikit-learn", None),
    "mnist": ("MNIST", "ylecun/mnist"),
    "fashion_mnist": ("Fashion-MNIST", "zalando-datasets/fashion_mnist"),
    "kmnist": ("Kuzushiji-MNIST", None),
    "cifar10": ("CIFAR-10", "uoft-cs/cifar10"),
}

# Titles of entries of config.json's "training".
TRAINING = {
    "steps": "steps",
    "batch_size": "batch size",
    "optimizer": "optimizer",
    "learning_rate": "learning rate",
    "lr_schedule": "learning rate schedule",
    "init": "initial weights",
    "ema_decay": "EMA decay",
    "loss_weight": "loss weight",
    "condition_dropout": "condition dropout",
    "flip": "random horizontal flips",
    "augment": "probability of each non-leaking augmentation",
    "seed": "seed",
}


class ExportOptions(NamedTuple):
    """How to export a model.

    label, text: the fixed class or caption; without both, the export is unconditional.
    keep_classes: export a class-conditional network instead.
    variance, thresholding, timestep_spacing: options of the scheduler.
    checkpoint: the checkpoint that is exported, for the record.
    """

    label: str | None = None
    text: str | None = None
    keep_classes: bool = False
    variance: str = "small"
    thresholding: str = "clip"
    timestep_spacing: str = "trailing"
    checkpoint: str = "final"


class CardInfo(NamedTuple):
    """What the card says in addition to config.json.

    options: those of the export.
    takes_labels, takes_mask: whether the trained network takes a class or text, and masks.
    license: identifier of the license, or None if it is unknown.
    scores: scores of the trained model.
    caption: the fixed class or text of the export, or "".
    parameters: number of parameters.
    picture_steps: DDIM steps of the picture's samples; 0 if there is no picture.
    """

    options: ExportOptions
    takes_labels: bool
    takes_mask: bool
    license: str | None
    scores: Sequence[Scores] = ()
    caption: str = ""
    parameters: int = 0
    picture_steps: int = 0


def write_card(config: dict[str, Any], card: CardInfo) -> str:
    """Returns the model card, YAML metadata and Markdown. config: the content of the model's config.json."""
    dataset, timesteps = config["data"].get("dataset"), config["diffusion"]["timesteps"]
    names = config["data"]["class_names"]
    listed = ", ".join(_code(name) for name in names[:MAX_CLASSES])
    text = render(
        Path(__file__).with_name("model_card.md.j2"),
        name=f"ddpm-{dataset or 'model'}",
        title=None if dataset == IMPORTED else DATASETS.get(dataset, (_code(dataset or "unknown"), None))[0],
        card=card,
        caption=_code(card.caption) if card.caption else "",
        shape=config["data"]["shape"],
        class_count=len(names),
        classes=listed + (f" and {len(names) - MAX_CLASSES:,} more" if len(names) > MAX_CLASSES else ""),
        has_no_class=config.get("training", {}).get("condition_dropout", 0) > 0,
        timesteps=timesteps,
        steps=(distilled := config.get("distillation", {}).get("steps")) or steps_of(timesteps),
        distilled=distilled,
        training=_training_rows(config, card),
        license=card.license.upper() if card.license == LICENSE else card.license,
    )
    metadata = yaml.safe_dump(_metadata(config, card), sort_keys=False, allow_unicode=True)
    return f"---\n{metadata}---\n\n{text}"


def _metadata(config: dict[str, Any], card: CardInfo) -> dict[str, Any]:
    dataset = config["data"].get("dataset")
    title, hub = DATASETS.get(dataset, (dataset or "images", None))
    # With a fixed class the export generates other samples than the scored ones.
    metrics = list(_metrics(card)) if card.options.keep_classes or not card.takes_labels else []
    results = {
        "task": {"type": TASK},
        "dataset": {"type": hub or dataset or "images", "name": title},
        "metrics": metrics,
    }
    return {
        **({"license": card.license} if card.license else {}),
        "library_name": "diffusers",
        "pipeline_tag": TASK,
        "tags": ["diffusers", "ddpm", "diffusion", TASK],
        **({"datasets": [hub]} if hub else {}),
        **({"model-index": [{"name": f"ddpm-{dataset or 'model'}", "results": [results]}]} if metrics else {}),
    }


def _metrics(card: CardInfo) -> Iterator[dict[str, Any]]:
    for score in card.scores:
        if not _is_comparable(score, card.options):
            continue
        how = f"{score.sampler}, {number(score.cost.nfe)} steps"
        if score.inception.fid is not None:
            yield {"type": "fid", "name": f"FID ({how})", "value": round(score.inception.fid, 3)}
        if score.classifier.fid is not None:
            value = float(supported(score.classifier.fid, score.classifier.fid_sd).replace(",", ""))
            yield {"type": "fid-own-classifier", "name": f"{FID_NAME} ({how})", "value": value}
        if score.accuracy is not None and card.options.keep_classes:
            yield {"type": "accuracy", "name": f"{ACCURACY_NAME} ({how})", "value": round(score.accuracy, 4)}


def _is_comparable(score: Scores, options: ExportOptions) -> bool:
    """Whether samples are of the exported checkpoint, with its thresholding and variance, and without guidance, by the record."""
    wanted = {"thresholding": options.thresholding, "guidance": 1.0, "variance": options.variance}
    sampled = {"variance": options.variance, **score.settings}  # a fast sampler has no variance
    return str(score.model.checkpoint) == options.checkpoint and all(sampled.get(key) == value for key, value in wanted.items())


def _code(name: str) -> str:
    """Returns a name as code in Markdown, without characters that end it."""
    return "`" + printable(" ".join(name.replace("`", "'").replace("|", "/").split())) + "`"


def steps_of(timesteps: int) -> int:
    """Returns the largest divisor of T up to 50; for a divisor, the steps of diffusers' DDIM are evenly spaced."""
    return next(steps for steps in range(min(MAX_STEPS, timesteps), 0, -1) if timesteps % steps == 0)


def _training_rows(config: dict[str, Any], card: CardInfo) -> dict[str, Any]:
    model, diffusion, training = config["model"], config["diffusion"], config.get("training", {})
    attention = [f"level {i}" for i in model["attention_levels"]] + ["middle"] * model["middle_attention"]
    zero_snr = ", zero terminal SNR" if diffusion["zero_terminal_snr"] else ""
    return {
        "data": config["data"].get("dataset"),
        "noise schedule": f"{diffusion['schedule']}, T = {diffusion['timesteps']:,}{zero_snr}",
        "prediction": diffusion["prediction"] + (", learned variance" if diffusion["learned_variance"] else ""),
        "channels": ", ".join(str(model["channels"] * mult) for mult in model["channel_mults"]),
        "blocks per level": model["blocks_per_level"],
        "attention": ", ".join(attention) or "none",
        "checkpoint": card.options.checkpoint,
        **{title: training[key] for key, title in TRAINING.items() if training.get(key) is not None},
    }
