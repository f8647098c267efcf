"""The scores of reports/evaluate/metrics.json that were measured with the weights of a model folder."""

from pathlib import Path

import torch

from ddpm.core.files import InputError, read_json
from ddpm.core.paths import METRICS_FILE, MODEL_DIR
from ddpm.core.weights import weights_sha256
from ddpm.networks.checkpoints import load_model
from ddpm.report.summary import SAMPLES


def scores_of(folder: Path) -> tuple[dict[str, dict], str]:
    """Returns the scores of each set of samples from this model, {"ddpm" or "ddim": scores}, and a note on those left out.

    Scores belong to a model if the checkpoint that they name has the SHA-256 that they name. The note is one line, "" if nothing
    is left out or if the folder is not models/ddpm. Raises InputError for a damaged metrics.json.
    """
    if not METRICS_FILE.is_file():
        return {}, ""
    metrics = read_json(METRICS_FILE, "evaluate")
    found = {name: metrics[name] for name in SAMPLES if isinstance(metrics.get(name), dict)}
    own = {name: scores for name, scores in found.items() if _is_of(folder, scores)}
    if len(own) == len(found) or folder.resolve() != MODEL_DIR.resolve():
        return own, ""
    titles = " and ".join(str(scores.get("sampler", name)) for name, scores in found.items() if name not in own)
    return own, f"{METRICS_FILE}: the scores of {titles} are of other weights, so they are left out; run `dvc repro evaluate`"


def _is_of(folder: Path, scores: dict) -> bool:
    model = scores.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("checkpoint"), str | float):
        return False
    try:
        network, _ = load_model(folder, model["checkpoint"], torch.device("cpu"))
    except InputError:
        return False
    return weights_sha256(network) == model.get("sha256")
