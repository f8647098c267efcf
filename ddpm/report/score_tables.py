"""Formats the scores of samples and of real test images for the tables of the page.

A metric is described by a dictionary of samples/judged/metrics.json, so that a new metric needs no code here. Its keys are those
that ddpm/evaluation/results.py documents: key, title, meaning, better, floor and share.
"""

from typing import Any

from ddpm.plots.numbers import decimals, measured, share_of, supported
from ddpm.report.summary import SAMPLES

REAL = "real"
ARROWS = {"lower": "↓", "higher": "↑"}
Cells = dict[str, dict[str, str]]


def cells_of(scores: dict, metrics: list[dict], extractor: str | None) -> Cells:
    """Returns the values of metrics as text, "-" where there is none: {set of samples, or "real": {key of the metric: text}}.

    scores: samples/judged/scores.json. extractor: None for metrics that need none.
    """
    columns = {name: scores[name][extractor] if extractor else scores[name] for name in SAMPLES}
    cells = {
        name: {m["key"]: _cell(column, m, scores["n"] * scores["sets"]) for m in metrics} for name, column in columns.items()
    }
    real = scores[REAL].get(extractor, {})
    return cells | {REAL: {m["key"]: _real_cell(columns[SAMPLES[0]], real, m, scores["n"]) for m in metrics}}


def rows_of(cells: Cells, metrics: list[dict]) -> list[list[str]]:
    """Returns a table row for each metric that was measured: title, the sets of samples, real images, meaning."""
    rows = []
    for metric in metrics:
        values = [cells[name][metric["key"]] for name in (*SAMPLES, REAL)]
        if any(value != "-" for value in values[:-1]):
            arrow = ARROWS.get(metric["better"]) or f"→ {metric['better']:g}"
            rows.append([f"{metric['title']} {arrow}", *values, metric["meaning"]])
    return rows


def _value(tree: dict, path: str) -> Any:
    for key in path.split("."):
        tree = tree.get(key, {}) if isinstance(tree, dict) else {}
    return None if tree == {} else tree


def _cell(column: dict, metric: dict, samples: int) -> str:
    value, key = _value(column, metric["key"]), metric["key"]
    if metric["share"]:
        return share_of(value, samples)
    if key == "fid_excess":
        # The FID minus a constant: it has the standard deviation and the decimals of the FID.
        return measured(value, column.get("fid_sd"), places=decimals(column["fid"], column.get("fid_sd")))
    return measured(value, _value(column, f"{key}_sd"))


def _real_cell(column: dict, real: dict, metric: dict, n: int) -> str:
    """The value of real images, with as many digits as the spread of the samples supports."""
    key, floor = metric["key"], metric["floor"]
    if not floor:
        return "-" if metric["better"] in ARROWS else f"{metric['better']:g}"
    value = real.get(key) if floor == REAL else _value(column, floor)
    if metric["share"]:
        return share_of(value, n)
    return "-" if value is None else supported(value, _value(column, f"{key}_sd"))
