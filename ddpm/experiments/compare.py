"""Writes reports/experiments: a page with tables of all settings (page.md.j2), a figure for each group, and a CSV."""

import io
from pathlib import Path
from typing import Any

import pandas as pd

from ddpm.core.files import InputError, check_regular, print_line, remove, write_text
from ddpm.experiments.git import first_of, is_committed
from ddpm.experiments.quality import quality_figure
from ddpm.experiments.significance import difference, format_difference, format_mean
from ddpm.experiments.tables import (
    MAX_NAMED,
    OF_MODEL,
    OF_SAMPLES,
    Experiments,
    Measure,
    by_setting,
    comparable,
    labels_of,
    values_of,
    with_computed,
)
from ddpm.plots.markdown import literal, render
from ddpm.report.summary import SAMPLES

TABLE, PAGE = "experiments.csv", "index.md"


def write_experiments(folder: Path, experiments: Experiments, force: bool = False) -> str:
    """Writes index.md, experiments.csv and a figure for each group of comparable experiments; returns a line for the terminal.

    Prints a line, before it writes, if the committed table has experiments that the new one lacks. Raises InputError if Git does
    not have that table, or if the folder holds another index.md; `force` replaces both.
    """
    experiments = experiments._replace(scores=with_computed(experiments.scores))
    groups = comparable(experiments)
    text = _csv(experiments, groups)
    if not force:
        _check_replaced(folder, text)
    for old in folder.glob("quality*.png"):
        remove(old)
    left_out: dict[str, list[str]] = {}
    for name, reason in experiments.left_out.items():
        left_out.setdefault(reason, []).append(name)
    seeds = [len(setting.about) for _, group in groups for setting in by_setting(group)]
    write_text(folder / TABLE, text)
    page = render(
        Path(__file__).with_name("page.md.j2"),
        count=len(experiments.about),
        commits=experiments.about["commit"].nunique(),
        seeds=seeds,
        left_out=left_out,
        groups=[_group(folder, number, title, group) for number, (title, group) in enumerate(groups)],
    )
    write_text(folder / PAGE, page)
    return f"{len(experiments.about)} experiments, {len(seeds)} settings: {folder / PAGE}"


def _check_replaced(folder: Path, text: str) -> None:
    """Prints or raises what `write_experiments` says of a folder. text: the new table."""
    if not any((folder / name).exists() for name in (TABLE, PAGE)):
        return
    check_regular(folder / TABLE)
    try:
        lost, is_ours = _rows((folder / TABLE).read_text(encoding="utf-8")) - _rows(text), True
    except (OSError, ValueError, KeyError):
        lost, is_ours = {(PAGE,)}, False
    names = sorted({name for name, *_ in lost})
    if names:
        named = first_of(names)
        if not (is_ours and is_committed(folder)):
            raise InputError(f"holds {named}, which would be lost; commit the folder, give another --out, or --force", key=folder)
        print_line(f"{folder}: replaces the committed table, which has {named}; `git restore {folder}` brings it back")


def _rows(text: str) -> set[tuple]:
    """The name, commit and FIDs of each experiment of a table. Raises ValueError or KeyError for another file."""
    columns = ["experiment", "commit", *(f"{name}.classifier.fid" for name in SAMPLES)]
    return set(pd.read_csv(io.StringIO(text), dtype=str)[columns].itertuples(index=False, name=None))


def _group(folder: Path, number: int, title: str, group: Experiments) -> dict[str, Any]:
    """Draws the figure of a group and returns what the page shows of it."""
    settings, names = by_setting(group), group.differing()
    figure, n = f"quality{f'_{number + 1}' if number else ''}.png", group.scores["n"].iloc[0]
    labels = labels_of(settings, names)
    shown_labels = [literal(label) for label in labels]
    samplers = {name: _sampler(group, name) for name in SAMPLES}
    quality_figure(folder / figure, labels, [setting.scores for setting in settings], samplers, n)
    is_numbered = len(names) > MAX_NAMED
    columns = [] if is_numbered else names
    parts = []
    for prefix, heading, measures in [
        *((f"{name}.", sampler, OF_SAMPLES) for name, sampler in samplers.items()), ("", "One-step denoising", OF_MODEL)
    ]:  # fmt: skip
        shown = {prefix + key: m for key, m in measures.items() if group.scores[prefix + key].notna().any()}
        if group.about["classifier"].nunique() > 1:
            shown.pop(f"{prefix}classifier.fid", None)
        if shown:
            parts.append({"title": heading, **_tables(settings, shown_labels, columns, shown)})
    return {
        "title": title,
        "n": f"{n:,.0f}",
        "classifiers": group.about["classifier"].unique().tolist(),
        "names": names,
        "labels": shown_labels,
        "setting_rows": [[label, *_cells(s, names)] for label, s in zip(labels, settings, strict=True)] if is_numbered else [],
        "same_scores": _same_scores(settings, shown_labels),
        "figure": figure,
        "has_repeats": len(group.about) > len(settings),
        "parts": parts,
        "committed": settings[0].about["committed"].any(),
        "below_floor": (group.scores[[f"{name}.fid_over_floor" for name in SAMPLES]].min() < 1).any(),
    }


def _tables(settings: list[Experiments], labels: list[str], names: list[str], measures: dict[str, Measure]) -> dict[str, Any]:
    """The rows of the scores and of the differences to the first setting. names: settings in the first columns, or none."""
    first_columns = [_cells(s, names) if names else [label] for s, label in zip(settings, labels, strict=True)]
    names = names or ["setting"]
    rows = [
        [*values, f"{len(s.about)}", *(format_mean(s.scores[key], m.scale, m.unit) for key, m in measures.items())]
        for s, values in zip(settings, first_columns, strict=True)
    ]
    tested = {key: m for key, m in measures.items() if m.better}
    first, *others = settings
    differences = [
        [*values, *(format_difference(difference(_by_pair(s, k), _by_pair(first, k)), m.better, m.scale, m.unit)
                    for k, m in tested.items())]
        for s, values in zip(others, first_columns[1:], strict=True)
    ]  # fmt: skip
    return {
        "named": len(names),
        "heads": [*names, "seeds", *(m.title for m in measures.values())],
        "rows": rows,
        "difference_heads": [*names, *(m.title for m in tested.values())],
        "differences": differences if tested else [],
    }


def _cells(setting: Experiments, names: list[str]) -> list[str]:
    return [literal(value) for value in values_of(setting, names)]


def _by_pair(setting: Experiments, key: str) -> pd.Series:
    """A score, indexed by seed and classifier."""
    return setting.scores[key].set_axis(pd.MultiIndex.from_frame(setting.about[["seed", "classifier"]]))


def _sampler(group: Experiments, name: str) -> str:
    samplers = [sampler for sampler in group.about[name].unique() if sampler]
    return samplers[0] if len(samplers) == 1 else f"sample_{name}"


def _same_scores(settings: list[Experiments], labels: list[str]) -> list[str]:
    """Labels of settings whose FIDs are equal to the last digit, joined by "and"."""
    by_fid: dict[tuple, dict[str, None]] = {}
    for setting, label in zip(settings, labels, strict=True):
        for fids in setting.scores[[f"{name}.classifier.fid" for name in SAMPLES]].itertuples(index=False, name=None):
            by_fid.setdefault(fids, {})[label] = None
    return list(dict.fromkeys(" and ".join(same) for same in by_fid.values() if len(same) > 1))


def _csv(experiments: Experiments, groups: list[tuple[str, Experiments]]) -> str:
    """A row for each experiment: its group, the settings that differ, and all scores."""
    group_of = pd.Series({name: title for title, group in groups for name in group.about.index}, name="group")
    about = experiments.about[["commit", "seed", "classifier"]].rename(columns={"classifier": "judge"})
    settings, scores = experiments.settings[experiments.differing()], experiments.scores.dropna(axis=1, how="all")
    frame = pd.concat([group_of.loc[about.index], about, settings, scores], axis=1)
    return frame.to_csv(index_label="experiment", float_format="%.6g")
