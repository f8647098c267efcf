"""A trained network on disk: safetensors weights and a config.json with everything that is needed to rebuild it.

models/ddpm/ holds three checkpoints: `final` (EMA at the end), `best` (EMA at the lowest validation loss) and `latest` (the
weights themselves at the last checkpoint, to continue training from). A number is a fourth kind: the EMA of that sigma_rel,
rebuilt from the snapshots.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ddpm.core.files import InputError, read_json
from ddpm.core.params import Section, lookup, make
from ddpm.core.paths import MODEL_DIR
from ddpm.core.weights import load_weights, put_weights
from ddpm.diffusion.prediction import PredictionName
from ddpm.diffusion.schedule import Diffusion, ScheduleName
from ddpm.networks.captions import Vocabulary
from ddpm.networks.conditioning import CONDITIONINGS
from ddpm.networks.power_ema import MAX_SIGMA_REL, MIN_SIGMA_REL, SNAPSHOTS, rebuild
from ddpm.networks.registry import Network, NetworkSettings, make_network
from ddpm.networks.unet import CompatOptions, Size

CONFIG = "config.json"
FORMAT = 6
MAX_COUNT = 10**9  # images of a class
CHECKPOINTS = {"final": "final.safetensors", "best": "best.safetensors", "latest": "latest.safetensors"}


def _checkpoint(value: Any) -> str | float:
    if isinstance(value, str) and value in CHECKPOINTS:
        return value
    if isinstance(value, float) and MIN_SIGMA_REL <= value <= MAX_SIGMA_REL:
        return value
    names = [*CHECKPOINTS, f"or an EMA width from {MIN_SIGMA_REL} to {MAX_SIGMA_REL}"]
    raise PydanticCustomError("one_of", "is unknown", {"names": names})


# A key of CHECKPOINTS, or the sigma_rel of an EMA that is rebuilt from snapshots.
CheckpointName = Annotated[str | float, PlainValidator(_checkpoint)]


class _Diffusion(Diffusion):
    schedule: ScheduleName
    prediction: PredictionName


class _Data(BaseModel):
    shape: Annotated[list[Size], Field(min_length=3, max_length=3)]
    class_names: Annotated[list[str], Field(min_length=1)]
    class_counts: list[Annotated[int, Field(ge=0, le=MAX_COUNT)]] | None = None

    @field_validator("class_counts")
    @classmethod
    def _one_per_class(cls, counts: list[int] | None, others: ValidationInfo) -> list[int] | None:
        if counts is not None and (len(counts) != len(others.data.get("class_names", [])) or not any(counts)):
            raise ValueError("must hold a number of images for each class, and not only 0")
        return counts


class _Config(BaseModel):
    """The entries of config.json that are needed to rebuild a network and to sample from it."""

    model_config = ConfigDict(strict=True)

    model: NetworkSettings
    diffusion: _Diffusion
    data: _Data
    compat: CompatOptions | None = None


def make_config(
    model: Section, schedule: str, prediction: str, diffusion: Diffusion, data: dict, training: dict, seed: int
) -> dict:
    """Returns the content of config.json: the settings of the network, the diffusion process, the data and the training."""
    takes_text = CONDITIONINGS[model.conditioning].embed_labels.takes_text
    return {
        "format": FORMAT,
        "model": model.model_dump(),
        "diffusion": {"schedule": schedule, "prediction": prediction, **diffusion.model_dump()},
        "data": data,
        "training": {**training, "seed": seed},
        **({"words": Vocabulary(data["class_names"]).words} if takes_text else {}),
    }


def load_model(folder: Path, checkpoint: str | float, device: torch.device) -> tuple[Network, dict]:
    """Rebuilds the network of a model folder; returns (network in eval mode on the device, config).

    checkpoint: a key of CHECKPOINTS, or the sigma_rel of an EMA (`power_ema.rebuild`).

    Raises InputError for a missing or damaged file, for weights that do not fit the config, and for an EMA that the snapshots
    cannot give.
    """
    path = folder / CONFIG
    config = read_json(path, "train")
    if config.get("format") != FORMAT:
        raise InputError(f"format {config.get('format')} is not {FORMAT}; make it again with `dvc repro train`", key=path)
    try:
        valid = make(_Config, **config)
        options = {"compat": valid.compat} if valid.compat else {}
        network = make_network(valid.model, valid.diffusion, tuple(valid.data.shape), valid.data.class_names, **options)
    except InputError as error:
        reason = str(error).split(";")[0]  # without the advice, which is about params.yaml
        raise InputError(f"invalid model config ({reason}); make it again with `dvc repro -f train`", key=path) from None
    if network.takes_text and config.get("words") != network.condition.vocabulary.words:
        raise InputError("vocabulary differs from that of the caption templates; retrain with `dvc repro train`", key=path)
    if isinstance(checkpoint, str):
        load_weights(folder / lookup(CHECKPOINTS, checkpoint, "checkpoint"), network, "train")
    else:
        put_weights(rebuild(folder, checkpoint), network, folder / SNAPSHOTS, "train")
    # Convolutions on CPU and on tensor cores are faster with the channels as the last axis in memory.
    return network.to(device, memory_format=torch.channels_last).eval(), config


def check_data(trained_on: dict, identity: dict) -> None:
    """Raises InputError if a model was trained on other data than the prepared data of this identity."""
    if {key: trained_on.get(key) for key in identity} != identity:
        raise InputError("was trained on other data than data/prepared holds; run `dvc repro train`", key=MODEL_DIR)
