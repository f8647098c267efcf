"""The scores of reports/evaluate/metrics.json that were measured with the weights of a model folder."""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from ddpm.core.files import InputError, read_json, remake
from ddpm.core.params import make
from ddpm.core.paths import METRICS_FILE, MODEL_DIR
from ddpm.core.weights import weights_sha256
from ddpm.networks.checkpoints import load_model
from ddpm.report.summary import SAMPLES


class _Entries(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Distance(_Entries):
    """FID in the features of an extractor, its standard deviation, and the FID of as many real images."""

    fid: float | None = None
    fid_sd: Annotated[float, Field(ge=0)] | None = None
    fid_floor: float | None = None


class _Cost(_Entries):
    nfe: int | None = None


class _Model(_Entries):
    checkpoint: str | float
    sha256: str


class Scores(_Entries):
    """What is read of a set of samples.

    sampler: label of the sampler.
    model: checkpoint and SHA-256 of the weights.
    cost: network evaluations per image.
    settings: settings of the sampler; older files do not have them.
    classifier, inception: FID in the features of the project's classifier, and of the Inception network.
    accuracy: share of the samples whose predicted class is the requested class.
    """

    sampler: str
    model: _Model
    cost: _Cost = _Cost()
    settings: dict[str, Any] = {}
    classifier: Distance = Distance()
    inception: Distance = Distance()
    accuracy: float | None = None


def scores_of(folder: Path) -> tuple[list[Scores], str]:
    """Returns the scores of each set of samples from this model, and a note on those left out.

    Scores belong to a model if the checkpoint that they name has the SHA-256 that they name. The note is one line, "" if nothing
    is left out or if the folder is not models/ddpm. Raises InputError for a damaged metrics.json.
    """
    if not METRICS_FILE.is_file():
        return [], ""
    metrics = read_json(METRICS_FILE, "evaluate")
    found = {name: metrics[name] for name in SAMPLES if isinstance(metrics.get(name), dict)}
    own = {name: scores for name, scores in found.items() if _is_of(folder, scores)}
    valid = [_valid(name, scores) for name, scores in own.items()]
    if len(own) == len(found) or folder.resolve() != MODEL_DIR.resolve():
        return valid, ""
    titles = " and ".join(str(scores.get("sampler", name)) for name, scores in found.items() if name not in own)
    return valid, f"{METRICS_FILE}: the scores of {titles} are of other weights, so they are left out; run `dvc repro evaluate`"


def _is_of(folder: Path, scores: dict) -> bool:
    model = scores.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("checkpoint"), str | float):
        return False
    try:
        network, _ = load_model(folder, model["checkpoint"], torch.device("cpu"))
    except InputError:
        return False
    return weights_sha256(network) == model.get("sha256")


def _valid(name: str, scores: dict) -> Scores:
    try:
        return make(Scores, **{str(key): value for key, value in scores.items()})
    except InputError as error:
        raise InputError(f"{error.message}; {remake('evaluate')}", key=f"{name}.{error.key}", where=METRICS_FILE) from None
