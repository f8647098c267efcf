"""Tells scores of other weights from those of the weights that a run trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm.core.files import read_json
from ddpm.core.paths import METRICS_FILE
from ddpm.report.summary import SAMPLES

TRAINED = Path("reports/train/metrics.json")
STAGES = ("guidance", "edit", "sweep")


def scores_of_other_weights(folder: Path = Path()) -> list[str]:
    """Returns which of SAMPLES, "evaluate" and STAGES have scores of other weights than the training, in a project's reports.

    Raises InputError for a damaged or missing metrics.json of `train` or `evaluate`.
    """
    metrics = read_json(folder / METRICS_FILE, "evaluate")
    models = {name: metrics[name].get("model", {}) for name in SAMPLES} | {"evaluate": metrics.get("model", {})}
    for stage in STAGES:
        if (path := folder / f"reports/{stage}/metrics.json").is_file():
            models[stage] = read_json(path, stage).get("model", {})
    return of_other_weights(read_json(folder / TRAINED, "train").get("final_sha256", ""), models)


def of_other_weights(trained: str, models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the names of the scores that were measured with other weights than the training or the scores before them had.

    trained: SHA-256 of the checkpoint `final`, "" if it is unknown. models: {name: {"checkpoint": ..., "sha256": ...}} of the
    scores; older ones have no hash, and are not compared.
    """
    first = {"final": trained} if trained else {}
    known = {name: (str(model.get("checkpoint")), model["sha256"]) for name, model in models.items() if model.get("sha256")}
    return [name for name, (checkpoint, sha256) in known.items() if first.setdefault(checkpoint, sha256) != sha256]
