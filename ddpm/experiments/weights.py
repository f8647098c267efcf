"""Tells scores of other weights from those of the weights that a run trained."""

from collections.abc import Mapping
from typing import Any


def of_other_weights(trained: str, models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the names of the scores that were measured with other weights than the training or the scores before them had.

    trained: SHA-256 of the checkpoint `final`, "" if it is unknown. models: {name: {"checkpoint": ..., "sha256": ...}} of the
    scores; older ones have no hash, and are not compared.
    """
    first = {"final": trained} if trained else {}
    known = {name: (str(model.get("checkpoint")), model["sha256"]) for name, model in models.items() if model.get("sha256")}
    return [name for name, (checkpoint, sha256) in known.items() if first.setdefault(checkpoint, sha256) != sha256]
