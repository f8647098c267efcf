"""The table of recorded runs in README.md, made of reports/recipes/*/run.json and the metrics beside them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ddpm.core.files import InputError, write_text
from ddpm.experiments.significance import with_spread
from ddpm.plots.numbers import table

RUN = "run.json"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
MADE_BY = "`python -m ddpm results`"
SAMPLERS = ("ddpm", "ddim")

HEADER = ["recipe", "data", "parameters", "sampler", "NFE", "FID ↓ (floor)", "n", "precision", "recall", "accuracy", "training",
          "machine"]  # fmt: skip

TEXT = (0, 1, 3, 11)
MINUTE, HOUR = 60, 3600


def update(readme: Path, records: Path, recipes: Sequence[str], check: bool = False) -> str:
    """Put the table of all records into a README, between its two comments; returns a line that says what was done.

    recipes: the names of those that there are. Raises InputError for a README without the comments, for a damaged record and,
    with `check`, if the README would change.
    """
    try:
        before = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})", key=readme) from None
    after = with_table(before, results_section(records, recipes, readme.parent), str(readme))
    count = len(list(_runs_files(records)))
    counted = f"{count} recorded recipe{'s' * (count != 1)}"
    if check and after != before:
        raise InputError(f"its table of results is not that of the {counted}; run {MADE_BY}", key=readme)
    if not check and after != before:
        write_text(readme, after)
    return f"{readme}: {counted}"


def with_table(text: str, section: str, name: str) -> str:
    """A README's text with what is between the comments replaced. Raises InputError if they are not there once, in order."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in tail:
        raise InputError(f"the table needs the line {BEGIN} and below it the line {END}, each once", key=name)
    return f"{head}{BEGIN}\n{section}\n{END}{tail}"


def results_section(records: Path, recipes: Sequence[str], relative_to: Path = Path()) -> str:
    """The table as Markdown, and a line that names the recipes that nobody ran.

    A record of an older kind, without run.json, is neither in the table nor called missing.
    """
    rows = [row for path in _runs_files(records) for row in _rows(path, relative_to)]
    missing = [name for name in recipes if not (records / name).is_dir()]
    parts = [table(HEADER, rows, TEXT)] if rows else []
    parts += [f"Not run yet: {', '.join(f'`{name}`' for name in missing)}."] if missing else []
    return "\n\n".join(parts)


def _runs_files(records: Path) -> Iterator[Path]:
    yield from sorted(records.glob(f"*/{RUN}"))


def _rows(path: Path, relative_to: Path) -> Iterator[list[str]]:
    """A row for each sampler of a record, over its seeds."""
    try:
        record = _read(path)
        metrics = [_read(path.parent / run["metrics"]) for run in record["runs"]]
        for sampler in SAMPLERS:
            yield _row(record, metrics, sampler, path.parent, relative_to)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"is no record of a run ({reason}); record it again, or remove its folder", key=path) from None


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _row(record: dict[str, Any], metrics: list[dict[str, Any]], sampler: str, folder: Path, relative_to: Path) -> list[str]:
    found = [of_run[sampler] for of_run in metrics]
    judged = [of_sampler["classifier"] for of_sampler in found]
    runs, first = record["runs"], sampler == SAMPLERS[0]
    link = (folder.relative_to(relative_to) if folder.is_relative_to(relative_to) else folder).as_posix()
    floor = with_spread(pd.Series([float(scores["fid_floor"]) for scores in judged]))
    parameters = runs[0]["parameters"]
    return [
        f"[{record['recipe']}]({link})" if first else "",
        record["dataset"] if first else "",
        f"{parameters:,}" if first else "",
        found[0]["sampler"],
        f"{found[0]['cost']['nfe']:,}",
        f"{with_spread(_values(judged, 'fid'))} ({floor})",
        f"{metrics[0]['n']:,}" + (f", {len(runs)} seeds" if len(runs) > 1 else ""),
        with_spread(_values(judged, "precision")),
        with_spread(_values(judged, "recall")),
        with_spread(_values(found, "accuracy"), 100, "%"),
        duration(sum(run["training_seconds"] for run in runs) / len(runs)) if first else "",
        machine(record["machine"]) if first else "",
    ]


def _values(rows: list[dict[str, Any]], key: str) -> pd.Series:
    """A value of each run, NaN where it has none."""
    return pd.Series([row.get(key) for row in rows], dtype=float)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, to two or three digits."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"


def machine(found: dict[str, Any]) -> str:
    """What a run ran on: its GPUs, or the cores of its CPU."""
    if found["gpu"]:
        return found["gpu"] if found["gpus"] == 1 else f"{found['gpus']} x {found['gpu']}"
    return f"{found['cores']} core{'s' if found['cores'] > 1 else ''} of {found['cpu']}"
