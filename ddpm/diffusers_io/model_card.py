"""The scores of the project's own model, as a model card tells them.

The model card of an export: a README.md with the metadata that model hubs read."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ddpm.core.files import InputError, read_json
from ddpm.core.params import PARAMS_FILE, read_yaml
from ddpm.core.paths import METRICS_FILE, MODEL_DIR
from ddpm.plots.numbers import measured, number, percent, supported

JUDGED = "FID in the features of the project's own classifier, not comparable with papers"
ASKED = "samples that the project's own classifier sees as the class asked for"


class Score(NamedTuple):
    """Of a set of samples: sampler, network evaluations, FID in the judge's features, its spread and what as many real images
    have, FID in the Inception's, share seen as the class asked for; each may be None. drawable:
    whether samples of the exported checkpoint, without guidance, as a pipeline draws them."""

    sampler: str
    evaluations: int | None
    fid: float | None
    fid_sd: float | None
    floor: float | None
    inception: float | None
    accuracy: float | None
    drawable: bool


def read_scores(folder: Path, checkpoint: str, thresholding: str) -> list[Score]:
    """The scores of the project's own model; none of any other."""
    if folder != MODEL_DIR or not METRICS_FILE.is_file():
        return []
    metrics = read_json(METRICS_FILE, "evaluate")
    try:
        params = read_yaml(PARAMS_FILE)
    except InputError:
        params = {}
    found = []
    for name in ("ddpm", "ddim"):
        of, section = _dict(metrics, name), _dict(params, f"sample_{name}")
        judged, usual = _dict(of, "classifier"), {"checkpoint": "final", "thresholding": "clip", "guidance": 1.0}
        drawn = {key: section.get(key, value) for key, value in usual.items()}
        if judged or "accuracy" in of:
            found.append(
                Score(
                    str(of.get("sampler", name)), _dict(of, "cost").get("nfe"), judged.get("fid"), judged.get("fid_sd"),
                    judged.get("fid_floor"), _dict(of, "inception").get("fid"), of.get("accuracy"),
                    drawn == {"checkpoint": checkpoint, "thresholding": thresholding, "guidance": 1.0},
                )
            )  # fmt: skip
    return found


def _dict(tree: dict[str, Any], key: str) -> dict[str, Any]:
    value = tree.get(key)
    return value if isinstance(value, dict) else {}


def metrics_of(scores: Sequence[Score], told_classes: bool) -> Iterator[dict[str, Any]]:
    """Metrics of a model card, of such samples as the export draws, under names that say what was measured."""
    for score in scores:
        if not score.drawable:
            continue
        how = f"{score.sampler}, {number(score.evaluations)} steps"
        if score.inception is not None:
            yield {"type": "fid", "name": f"FID ({how})", "value": round(score.inception, 3)}
        if score.fid is not None:
            value = float(supported(score.fid, score.fid_sd).replace(",", ""))
            yield {"type": "fid-own-classifier", "name": f"{JUDGED} ({how})", "value": value}
        if score.accuracy is not None and told_classes:
            yield {"type": "accuracy", "name": f"{ASKED} ({how})", "value": round(score.accuracy, 4)}


def table_of(scores: Sequence[Score]) -> str:
    """The scores as a table in Markdown."""
    rows = "\n".join(
        f"| {s.sampler} | {number(s.evaluations)} | {measured(s.fid, s.fid_sd)} | {measured(s.floor)} | {percent(s.accuracy)} |"
        for s in scores
    )
    head = "| sampler | network evaluations | FID | of as many real images | seen as the class asked for |"
    return f"{head}\n| :-- | --: | --: | --: | --: |\n{rows}"


TASK = "unconditional-image-generation"
IMPORTED = "imported"
LICENSE = "mit"  # of this project
MAX_CLASSES = 20

# What a data set is called, and where hubs have it.
DATASETS = {
    "digits": ("the UCI handwritten digits of scikit-learn", None),
    "mnist": ("MNIST", "ylecun/mnist"),
    "fashion_mnist": ("Fashion-MNIST", "zalando-datasets/fashion_mnist"),
    "kmnist": ("Kuzushiji-MNIST", None),
    "cifar10": ("CIFAR-10", "uoft-cs/cifar10"),
}

TRAINING = {
    "steps": "steps",
    "batch_size": "batch size",
    "learning_rate": "learning rate",
    "lr_schedule": "learning rate schedule",
    "ema_decay": "decay of the averaged weights",
    "loss_weight": "loss weight",
    "condition_dropout": "share of images without their class",
    "flip": "mirrored at random",
    "seed": "seed",
}


class CardInfo(NamedTuple):
    """What the card says beside the config: the checkpoint; whether the network could be told what to draw, and known pixels;
    whether the export still takes a class; its variance; its license (None: nobody knows); scores; and, once it is drawn, what it
    is told, its parameters, and the steps of DDIM of its picture, 0 for none."""

    checkpoint: str
    takes_labels: bool
    takes_mask: bool
    keep_classes: bool
    variance: str
    license: str | None
    scores: list[Score]
    words: str = ""
    parameters: int = 0
    picture: int = 0


def write_card(config: dict[str, Any], facts: CardInfo) -> str:
    """The model card of a model whose config.json has that content: metadata, then Markdown."""
    name = f"ddpm-{config['data'].get('dataset', 'model')}"
    metadata = yaml.safe_dump(_metadata(name, config, facts), sort_keys=False, allow_unicode=True)
    sections = [_what(name, config, facts), _use(config, facts), _training(config, facts), _scores(facts), _limits(facts)]
    sections.append(_license(facts))
    return f"---\n{metadata}---\n\n" + "\n\n".join(text for text in sections if text) + "\n"


def _metadata(name: str, config: dict[str, Any], facts: CardInfo) -> dict[str, Any]:
    title, hub = DATASETS.get(config["data"].get("dataset"), (config["data"].get("dataset", "images"), None))
    draws_as_scored = facts.keep_classes or not facts.takes_labels
    metrics = list(metrics_of(facts.scores, facts.keep_classes)) if draws_as_scored else []
    results = {
        "task": {"type": TASK},
        "dataset": {"type": hub or config["data"].get("dataset", "images"), "name": title},
        "metrics": metrics,
    }
    return {
        **({"license": facts.license} if facts.license else {}),
        "library_name": "diffusers",
        "pipeline_tag": TASK,
        "tags": ["diffusers", "ddpm", "diffusion", TASK],
        **({"datasets": [hub]} if hub else {}),
        **({"model-index": [{"name": name, "results": [results]}]} if metrics else {}),
    }


def _what(name: str, config: dict[str, Any], facts: CardInfo) -> str:
    height, width, channels = config["data"]["shape"]
    title = DATASETS.get(config["data"].get("dataset"), (f"`{config['data'].get('dataset', 'unknown')}`", None))[0]
    like = "" if config["data"].get("dataset") == IMPORTED else f" like those of {title}"
    picture = f"\n\n![samples, drawn by DDIM in {facts.picture} steps](samples.png)" if facts.picture else ""
    kind = "gray" if channels == 1 else "colour"
    return (
        f"# {name}{picture}\n\n"
        f"A denoising diffusion model ([Ho et al. 2020](https://arxiv.org/abs/2006.11239)) that turns noise into "
        f"{height}x{width} {kind} images{like}: a U-Net of {facts.parameters:,} parameters, in the format of "
        f"[diffusers](https://github.com/huggingface/diffusers).\n\n{_told(config, facts)}"
    )


def _told(config: dict[str, Any], facts: CardInfo) -> str:
    names = config["data"]["class_names"]
    listed = ", ".join(_code(name) for name in names[:MAX_CLASSES])
    listed += f" and {len(names) - MAX_CLASSES:,} more" if len(names) > MAX_CLASSES else ""
    lines = ["It was trained on images alone, and is told nothing but the level of noise."]
    if facts.keep_classes:
        no_class = f"; {len(names)} means no class" if _knows_no_class(config) else ""
        lines = [f"It is told a class by its number, 0 to {len(names) - 1}: {listed}{no_class}."]
    elif facts.takes_labels:
        what = f"{_code(facts.words)}, at every step" if facts.words else "nothing"
        lines = [
            f"It was trained to be told what to draw, of {len(names)} classes: {listed}. In this export it is told {what}: that "
            "is part of the weights, so that a pipeline without classes can draw with it."
        ]
    if facts.takes_mask:
        lines.append("It can also fill in images, which these pipelines cannot: here no pixel is known.")
    return " ".join(lines)


def _knows_no_class(config: dict[str, Any]) -> bool:
    """Whether classes were dropped in training, so that "no class" means something to it."""
    return config.get("training", {}).get("condition_dropout", 0) > 0


def _code(name: str) -> str:
    """A name as code in Markdown, whatever is in it."""
    return "`" + " ".join(name.replace("`", "'").replace("|", "/").split()) + "`"


def steps_of(timesteps: int, most: int = 50) -> int:
    """The largest number of steps up to `most` that divides T, so that DDIM's steps are even."""
    return next(steps for steps in range(min(most, timesteps), 0, -1) if timesteps % steps == 0)


def _use(config: dict[str, Any], facts: CardInfo) -> str:
    timesteps = config["diffusion"]["timesteps"]
    make = _loop if facts.keep_classes else _pipeline
    notes = [
        f"- Choose a number of steps that divides {timesteps:,}: the steps of diffusers are even alone then. `DDPMPipeline` "
        f"draws with all of them, `num_inference_steps={timesteps}`.",
        "- `use_clipped_model_output=True` lets the noise agree with the limited image, as in the sampler of the project that "
        "trained it; it is for DDIM alone.",
        "- These pipelines have no guidance towards a class.",
    ]
    if facts.keep_classes:
        loop = "- The pipelines of diffusers cannot tell a class, so they do not draw with it; this loop does."
        guidance = (
            f" Guidance is a second `unet(x, t, class_labels=...)` with {len(config['data']['class_names'])}, no class, at each "
            "step: `none + scale * (output - none)`."
        )
        notes = [notes[1], loop + guidance * _knows_no_class(config)]
    if facts.variance == "learned":
        notes = [
            "- The network puts out the variance of its steps too, which `DDPMPipeline` uses and `DDIMPipeline` cannot read."
        ]
    return f"## How to use it\n\n```python\n{make(config, facts, timesteps)}\n```\n\n" + "\n".join(notes)


def _pipeline(config: dict[str, Any], facts: CardInfo, timesteps: int) -> str:
    kind, given = "DDIMPipeline", f"num_inference_steps={steps_of(timesteps)}, use_clipped_model_output=True"
    if facts.variance == "learned":
        kind, given = "DDPMPipeline", f"num_inference_steps={timesteps}"
    return (
        f"import torch\nfrom diffusers import {kind}\n\n"
        'folder = "."  # or where this is on a hub\n'
        f"pipeline = {kind}.from_pretrained(folder)\n"
        f"images = pipeline(batch_size=4, generator=torch.Generator().manual_seed(0), {given}).images\n"
        'images[0].save("image.png")'
    )


def _loop(config: dict[str, Any], facts: CardInfo, timesteps: int) -> str:
    height, width, channels = config["data"]["shape"]
    learned = facts.variance == "learned"
    kind, steps = ("DDPMScheduler", timesteps) if learned else ("DDIMScheduler", steps_of(timesteps))
    clipped = "" if learned else ", use_clipped_model_output=True"
    return (
        f"import torch\nfrom diffusers import {kind}, UNet2DModel\n\n"
        'folder = "."  # or where this is on a hub\n'
        'unet = UNet2DModel.from_pretrained(folder, subfolder="unet")\n'
        f'scheduler = {kind}.from_pretrained(folder, subfolder="scheduler")\n'
        f"scheduler.set_timesteps({steps})\n"
        "classes = torch.tensor([0, 0])\n"
        f"x = torch.randn(len(classes), {channels}, {height}, {width}, generator=torch.Generator().manual_seed(0))\n"
        "with torch.no_grad():\n"
        "    for t in scheduler.timesteps:\n"
        "        output = unet(x, t, class_labels=classes).sample\n"
        f"        x = scheduler.step(output, t, x{clipped}).prev_sample\n"
        "images = (x / 2 + 0.5).clamp(0, 1)"
    )


def _training(config: dict[str, Any], facts: CardInfo) -> str:
    model, diffusion, training = config["model"], config["diffusion"], config.get("training", {})
    rows = {
        "data": config["data"].get("dataset"),
        "noise": f"{diffusion['schedule']}, T = {diffusion['timesteps']:,}"
        + (", the last level pure noise" if diffusion["zero_terminal_snr"] else ""),
        "prediction": diffusion["prediction"] + (", learned variance" if diffusion["learned_variance"] else ""),
        "widths": ", ".join(str(model["channels"] * mult) for mult in model["channel_mults"]),
        "blocks per level": model["blocks_per_level"],
        "attention": ", ".join(
            [f"level {i}" for i in model["attention_levels"]] + ["middle"] * model["middle_attention"]
        ) or "none",
        "checkpoint": facts.checkpoint,
        **{text: training[key] for key, text in TRAINING.items() if training.get(key) is not None},
    }  # fmt: skip
    words = {True: "yes", False: "no"}
    table = "\n".join(f"| {key} | {words[value] if isinstance(value, bool) else value} |" for key, value in rows.items())
    return f"## How it was trained\n\n| | |\n| :-- | :-- |\n{table}\n\n`ddpm.json` has every setting."


def _scores(facts: CardInfo) -> str:
    if not facts.scores:
        return ""
    told = "told every class in turn" if facts.takes_labels else "told nothing"
    other = ", which this export is not" if facts.takes_labels and not facts.keep_classes else ""
    return (
        f"## Scores\n\n{table_of(facts.scores)}\n\n"
        f"Of the network {told}{other}, and drawn by the project that trained it. FID is measured in the features of a small "
        "classifier of the same data: it says which of these rows is nearer to the data, and is comparable with no paper."
    )


def _limits(facts: CardInfo) -> str:
    return (
        "## Limits\n\n"
        "It draws what its training images show, with what is wrong with them, and may draw some of them again. Images of "
        "another size, or of anything else, are beyond it."
    )


def _license(facts: CardInfo) -> str:
    if not facts.license:
        return "## License\n\nThe weights were trained elsewhere; they stand under the license of where they come from."
    return f"## License\n\n{facts.license.upper() if facts.license == LICENSE else facts.license}."
