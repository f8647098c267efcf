"""The scores of the project's own model, as a model card tells them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddpm.app.about import METRICS
from ddpm.files import InputError, read_json
from ddpm.params import PARAMS_FILE, read_yaml
from ddpm.reporting.tables import measured, number, percent, supported
from ddpm.sampling.model import FOLDER

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
    if folder != FOLDER or not METRICS.is_file():
        return []
    metrics = read_json(METRICS, "evaluate")
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
