"""A trained network on disk: safetensors weights and a config.json with everything that is needed to rebuild it.

models/ddpm/ holds three checkpoints: `final` (EMA at the end), `best` (EMA at the lowest validation loss or FID) and `latest`
(the weights themselves at the last checkpoint, to continue training from). A number is a fourth kind: the EMA of that sigma_rel,
rebuilt from the snapshots.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ddpm.core.files import InputError, read_json, remake
from ddpm.core.params import Section, lookup, make
from ddpm.core.paths import MODEL_DIR
from ddpm.core.weights import load_weights, put_weights
from ddpm.diffusion.prediction import PredictionName
from ddpm.diffusion.schedule import Diffusion, ScheduleName
from ddpm.networks.captions import Vocabulary
from ddpm.networks.conditioning import CONDITIONINGS
from ddpm.networks.names import CHECKPOINTS, CONFIG, MAX_SIGMA_REL, MIN_SIGMA_REL, SNAPSHOTS
from ddpm.networks.power_ema import TRACKED_SIGMA_REL, list_snapshots, read_snapshot, rebuild, snapshot_file
from ddpm.networks.registry import Network, NetworkSettings, make_network
from ddpm.networks.unet import CompatOptions, Size

FORMAT = 6
MAX_COUNT = 10**9  # images of a class


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


class _Entries(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Data(_Entries):
    dataset: str | None = None
    shape: Annotated[list[Size], Field(min_length=3, max_length=3)]
    class_names: list[str]
    class_counts: list[Annotated[int, Field(ge=0, le=MAX_COUNT)]] | None = None

    @field_validator("class_counts")
    @classmethod
    def _one_per_class(cls, counts: list[int] | None, others: ValidationInfo) -> list[int] | None:
        names = others.data.get("class_names", [])
        if counts is not None and (len(counts) != len(names) or (names and not any(counts))):
            raise ValueError("must hold a number of images for each class, and not only 0")
        return counts


class _Training(_Entries):
    steps: Annotated[int, Field(ge=0)] | None = None
    batch_size: Annotated[int, Field(ge=0)] | None = None
    learning_rate: float | None = None
    lr_schedule: str | None = None
    ema_decay: float | None = None
    loss_weight: str | None = None
    condition_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    flip: bool | None = None
    augment: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: int | None = None


class _Distillation(_Entries):
    steps: Annotated[int, Field(ge=1)]
    guidance: Annotated[float, Field(ge=0)]


class _Config(_Entries):
    """The entries of config.json that are read: to rebuild a network, to sample from it and to describe it."""

    model: NetworkSettings
    diffusion: _Diffusion
    data: _Data
    training: _Training
    distillation: _Distillation | None = None
    words: list[str] | None = None
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

    checkpoint: a key of CHECKPOINTS, the sigma_rel of an EMA (`power_ema.rebuild`), or, as an int, the step of a snapshot, which
        gives its narrowest EMA.

    Raises InputError for a missing or damaged file, for weights that do not fit the config, and for an EMA that the snapshots
    cannot give.
    """
    path, made_by = folder / CONFIG, "train" if folder == MODEL_DIR else ""
    config = read_json(path, made_by)
    if config.get("format") != FORMAT:
        raise InputError(f"format {config.get('format')!r:.20} is not {FORMAT}; {remake(made_by)}", key=path)
    try:
        valid = make(_Config, **config)
        options = {"augmented": valid.training.augment > 0} | ({"compat": valid.compat} if valid.compat else {})
        network = make_network(valid.model, valid.diffusion, tuple(valid.data.shape), valid.data.class_names, **options)
    except InputError as error:
        reason = str(error).split(";")[0]  # without the advice, which is about params.yaml
        raise InputError(f"invalid model config ({reason}); {remake(made_by)}", key=path) from None
    if network.takes_text and config.get("words") != network.condition.vocabulary.words:
        raise InputError(f"vocabulary differs from that of the caption templates; {remake(made_by)}", key=path)
    if isinstance(checkpoint, str):
        load_weights(folder / lookup(CHECKPOINTS, checkpoint, "checkpoint"), network, made_by)
    elif isinstance(checkpoint, int):
        put_weights(read_snapshot(folder, checkpoint)[TRACKED_SIGMA_REL[0]], network, snapshot_file(folder, checkpoint), made_by)
    else:
        steps, last = valid.training.steps, max(list_snapshots(folder), default=0)
        if steps and last > steps:
            raise InputError(f"is of no step of this training, which had {steps:,}; remove it", key=snapshot_file(folder, last))
        put_weights(rebuild(folder, checkpoint), network, folder / SNAPSHOTS, made_by)
    # Convolutions on CPU and on tensor cores are faster with the channels as the last axis in memory.
    return network.to(device, memory_format=torch.channels_last).eval(), config


def check_data(trained_on: dict, identity: dict) -> None:
    """Raises InputError if a model was trained on other data than the prepared data of this identity."""
    if {key: trained_on.get(key) for key in identity} != identity:
        raise InputError("was trained on other data than data/prepared holds; run `dvc repro train`", key=MODEL_DIR)
