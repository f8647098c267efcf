"""Writes the table of recorded runs into RESULTS_FILE, from reports/recipes/*/run.json and their metrics."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from ddpm.core.files import InputError, check_regular, write_text
from ddpm.experiments.significance import format_mean
from ddpm.plots.markdown import literal
from ddpm.plots.numbers import table
from ddpm.report.other_weights import of_other_weights
from ddpm.report.summary import SAMPLES

RUN = "run.json"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
HEADER = ["recipe", "data", "parameters", "sampler", "NFE", "FID ↓ (floor)", "n", "precision", "recall", "accuracy", "training",
          "machine"]  # fmt: skip

TEXT_COLUMNS = (0, 1, 3, 11)
MINUTE, HOUR = 60, 3600


def update(readme: Path, records: Path, recipes: Sequence[str], check: bool = False) -> str:
    """Writes the table of all records into a file, between its two comments; returns a line for the terminal.

    recipes: names of all recipes. check: do not write. Raises InputError for a file without the comments, for a damaged record
    and, with `check`, if the file would change.
    """
    check_regular(readme)
    try:
        before = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})", key=readme) from None
    after = with_table(before, results_section(records, recipes, readme.parent), str(readme))
    count = len(_run_files(records))
    counted = f"{count} recorded recipe{'s' * (count != 1)}"
    if check and after != before:
        raise InputError(f"the table differs from the {counted}; run `python -m ddpm results`", key=readme)
    if not check and after != before:
        write_text(readme, after)
    return f"{readme}: {counted}"


def with_table(text: str, section: str, name: str) -> str:
    """Returns a text with the section between the two comments replaced. Raises InputError unless each is there once."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in tail:
        raise InputError(f"needs the line {BEGIN} and below it the line {END}, each once", key=name)
    return f"{head}{BEGIN}\n{section}\n{END}{tail}"


def results_section(records: Path, recipes: Sequence[str], relative_to: Path = Path()) -> str:
    """Returns the table as Markdown, and a line that names the recipes without a record.

    Folders of records without a run.json, of an older format, are neither in the table nor in that line.
    """
    rows = [row for path in _run_files(records) for row in _rows(path, relative_to)]
    missing = [name for name in recipes if not (records / name).is_dir()]
    parts = [table(HEADER, rows, TEXT_COLUMNS)] if rows else []
    parts += [f"Not run yet: {', '.join(f'`{name}`' for name in missing)}."] if missing else []
    return "\n\n".join(parts)


def _run_files(records: Path) -> list[Path]:
    return sorted(records.glob(f"*/{RUN}"))


def _rows(path: Path, relative_to: Path) -> Iterator[list[str]]:
    """A row for each set of samples of a record: means over its seeds."""
    try:
        record = _read(path)
        metrics = [_read(path.parent / run["metrics"]) for run in record["runs"]]
        for run, of_run in zip(record["runs"], metrics, strict=True):
            if of_other_weights(run.get("final_sha256", ""), {name: of_run[name].get("model", {}) for name in SAMPLES}):
                raise ValueError(f"{run['metrics']} has the scores of other weights")
        for name in SAMPLES:
            yield _row(record, metrics, name, path.parent, relative_to)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"is not a valid record ({reason}); record the run again, or remove the folder", key=path) from None


def _read(path: Path) -> dict[str, Any]:
    check_regular(path)
    return json.loads(path.read_text(encoding="utf-8"))


def _row(record: dict[str, Any], metrics: list[dict[str, Any]], name: str, folder: Path, relative_to: Path) -> list[str]:
    scores = [run[name] for run in metrics]
    spaces = [run["classifier"] for run in scores]
    runs, first = record["runs"], name == SAMPLES[0]
    link = (folder.relative_to(relative_to) if folder.is_relative_to(relative_to) else folder).as_posix()
    fid, floor = format_mean(_values(spaces, "fid")), format_mean(_values(spaces, "fid_floor"))
    parameters = runs[0]["parameters"]
    return [
        f"[{literal(record['recipe'])}]({quote(link)})" if first else "",
        literal(record["dataset"]) if first else "",
        f"{parameters:,}" if first else "",
        literal(scores[0]["sampler"]),
        f"{scores[0]['cost']['nfe']:,}",
        fid if fid == "-" else f"{fid} ({floor})",  # nothing is measured in features that tell nothing
        f"{metrics[0]['n']:,}" + (f", {len(runs)} seeds" if len(runs) > 1 else ""),
        format_mean(_values(spaces, "precision")),
        format_mean(_values(spaces, "recall")),
        format_mean(_values(scores, "accuracy"), 100, "%"),
        duration(sum(run["training_seconds"] for run in runs) / len(runs)) if first else "",
        literal(machine(record["machine"])) if first else "",
    ]


def _values(rows: list[dict[str, Any]], key: str) -> pd.Series:
    """A value of each run, NaN where it is missing."""
    return pd.Series([row.get(key) for row in rows], dtype=float)


def duration(seconds: float) -> str:
    """Returns a duration in seconds, minutes or hours, with two or three digits."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"


def machine(entry: dict[str, Any]) -> str:
    """Returns the hardware of a run: its GPUs, or the cores of its CPU. entry: `machine` of run.json."""
    if entry["gpu"]:
        return entry["gpu"] if entry["gpus"] == 1 else f"{entry['gpus']} x {entry['gpu']}"
    return f"{entry['cores']} core{'s' if entry['cores'] > 1 else ''} of {entry['cpu']}"
