"""A trained network on disk: safetensors weights beside a config.json with all that is needed to rebuild it.

models/ddpm/ holds `final` (EMA at the end), `best` (EMA at the lowest validation loss) and `latest` (the weights themselves,
without averaging, at the last checkpoint): what to sample from, its rival, and what to train on from. From its snapshots, if
there are any, an EMA of any width is rebuilt: such a checkpoint is a number.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import PydanticCustomError

from ddpm.core.files import InputError, read_json
from ddpm.core.params import lookup
from ddpm.core.weights import load_weights, put_weights
from ddpm.diffusion.prediction import PredictionName
from ddpm.diffusion.schedule import Diffusion, ScheduleName
from ddpm.networks.captions import Vocabulary
from ddpm.networks.conditioning import CONDITIONINGS, TextEncoder
from ddpm.networks.power_ema import MAX_SIGMA_REL, MIN_SIGMA_REL, SNAPSHOTS, rebuild
from ddpm.networks.unet import DEFAULTS, CompatOptions, Size, UNet, UNetSettings

CONFIG = "config.json"
FORMAT = 6
CHECKPOINTS = {"final": "final.safetensors", "best": "best.safetensors", "latest": "latest.safetensors"}


def _checkpoint(value: Any) -> str | float:
    if isinstance(value, str) and value in CHECKPOINTS:
        return value
    if isinstance(value, float) and MIN_SIGMA_REL <= value <= MAX_SIGMA_REL:
        return value
    names = [*CHECKPOINTS, f"or an EMA width from {MIN_SIGMA_REL} to {MAX_SIGMA_REL}"]
    raise PydanticCustomError("one_of", "is unknown", {"names": names})


# A key of CHECKPOINTS, or the width of an EMA that is rebuilt from snapshots.
CheckpointName = Annotated[str | float, PlainValidator(_checkpoint)]


class _Levels(Diffusion):
    schedule: ScheduleName
    prediction: PredictionName


class _Data(BaseModel):
    shape: Annotated[list[Size], Field(min_length=3, max_length=3)]
    class_names: Annotated[list[str], Field(min_length=1)]


class _Config(BaseModel):
    """The entries of config.json without which no network can be rebuilt and sampled from."""

    model_config = ConfigDict(strict=True)

    model: UNetSettings
    diffusion: _Levels
    data: _Data
    details: CompatOptions = DEFAULTS


def make_config(
    model: UNetSettings, schedule: str, prediction: str, diffusion: Diffusion, data: dict, training: dict, seed: int
) -> dict:
    """The content of config.json: the network's settings, what it predicts at which levels, its data, how it was trained."""
    reads = CONDITIONINGS[model.conditioning].content is TextEncoder
    return {
        "format": FORMAT,
        "model": model.model_dump(),
        "diffusion": {"schedule": schedule, "prediction": prediction, **diffusion.model_dump()},
        "data": data,
        "training": {**training, "seed": seed},
        **({"words": Vocabulary(data["class_names"]).words} if reads else {}),
    }


def make_network(
    model: UNetSettings,
    diffusion: Diffusion,
    shape: tuple[int, int, int],
    class_names: Sequence[str],
    details: CompatOptions = DEFAULTS,
) -> UNet:
    """The network of these settings for images (H, W, C). Raises InputError for sizes that do not fit together."""
    return UNet(model, shape, class_names, shape[2] * (2 if diffusion.learned_variance else 1), details)


def load_model(folder: Path, checkpoint: str | float, device: torch.device) -> tuple[UNet, dict]:
    """Rebuild the network of a model folder: (network in eval mode on the device, config).

    checkpoint: a key of CHECKPOINTS, or the width of an EMA, which `snapshots.rebuild` makes.

    Raises InputError for a missing or damaged file, for weights that do not fit the config, and for a width that the snapshots
    do not give.
    """
    config = read_json(folder / CONFIG, "train")
    if config.get("format") != FORMAT:
        raise InputError(
            f"format {config.get('format')} is not {FORMAT}; make it again with `dvc repro train`", key=folder / CONFIG
        )
    try:
        known = _Config.model_validate(config)
        network = make_network(known.model, known.diffusion, tuple(known.data.shape), known.data.class_names, known.details)
    except (ValidationError, InputError) as error:
        reason = _first_mistake(error) if isinstance(error, ValidationError) else error
        raise InputError(
            f"describes no network ({reason}); make it again with `dvc repro -f train`", key=folder / CONFIG
        ) from None
    if network.takes_text and config.get("words") != network.condition.vocabulary.words:
        raise InputError("words: are not those of today's captions; make it again with `dvc repro train`", key=folder / CONFIG)
    if isinstance(checkpoint, str):
        load_weights(folder / lookup(CHECKPOINTS, checkpoint, "checkpoint"), network, "train")
    else:
        put_weights(rebuild(folder, checkpoint), network, folder / SNAPSHOTS, "train")
    # Convolutions on CPU and on tensor cores run faster with the channels as the last axis in memory.
    return network.to(device, memory_format=torch.channels_last).eval(), config


def _first_mistake(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def check_data(found: dict, identity: dict) -> None:
    """Raises InputError if the data that a config names is not the data of that identity."""
    if found != identity:
        raise InputError("was trained on other data than data/prepared holds; run `dvc repro train`", key="models/ddpm")
