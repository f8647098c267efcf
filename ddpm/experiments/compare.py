"""reports/experiments: settings beside each other in tables, a figure and a CSV; differences beside the spread over seeds."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ddpm.core.files import remove, write_text
from ddpm.experiments.quality import quality_figure
from ddpm.experiments.significance import difference, in_words, with_spread
from ddpm.experiments.tables import (
    MAX_NAMED,
    OF_MODEL,
    OF_SAMPLER,
    SAMPLERS,
    Experiments,
    Measure,
    by_setting,
    comparable,
    labels_of,
    values_of,
    with_computed,
)
from ddpm.plots.numbers import table

FOLDER = Path("reports/experiments")


def write_experiments(folder: Path, found: Experiments) -> str:
    """Write index.md, experiments.csv and a figure per group of comparable experiments. Returns a line for the terminal."""
    found = found._replace(scores=with_computed(found.scores))
    groups = comparable(found)
    for old in folder.glob("quality*.png"):
        remove(old)
    # Experiments judged alike first, by how many they are; the page has a part for each.
    parts = [_part(folder, number, title, group, len(groups)) for number, (title, group) in enumerate(groups)]
    write_text(folder / "experiments.csv", _csv(found, groups))
    write_text(folder / "index.md", "\n\n".join([*_head(found, groups), *(text for part in parts for text in part)]) + "\n")
    settings = sum(len(by_setting(group)) for _, group in groups)
    return f"{len(found.about)} experiments, {settings} settings: {folder / 'index.md'}"


def _head(found: Experiments, groups: list[tuple[str, Experiments]]) -> list[str]:
    counts = [len(setting.about) for _, group in groups for setting in by_setting(group)]
    commits = found.about["commit"].nunique()
    lines = [
        "# Experiments",
        f"{len(found.about)} experiments of {'one commit' if commits == 1 else f'{commits} commits'} in {len(counts)} settings; "
        "those that differ by `seed` alone are one setting. ± is the standard deviation over seeds. A difference is called "
        "better or worse only where it exceeds what seeds alone make of it in 19 of 20 cases: 4.3 standard errors with three "
        "seeds, 2.8 with five. So one in twenty differences that are none is called one. Seeds that two settings share are "
        "compared in pairs, since they share the judge as well.",
    ]
    if max(counts) == 1:
        lines.append(
            "**The spread over seeds is unknown**: every setting was run with one seed, so no difference here is known to be "
            "more than noise. `-S 'seed=range(0,3)'` beside the other changes of `dvc exp run --queue` tells it."
        )
    elif min(counts) == 1:
        lines.append("Settings with a single seed have an unknown spread; `-S 'seed=range(0,3)'` tells it.")
    if len(groups) > 1:
        lines.append(
            f"They fall into {len(groups)} groups with other images, another n or another kind of judge. FID depends on all "
            "three, so nothing is compared across groups."
        )
    if found.left_out:
        reasons: dict[str, list[str]] = {}
        for name, reason in found.left_out.items():
            reasons.setdefault(reason, []).append(name)
        lines.append("Left out:\n\n" + "\n".join(f"- {reason}: {', '.join(names)}" for reason, names in reasons.items()))
    return lines


def _part(folder: Path, number: int, title: str, group: Experiments, parts: int) -> Iterator[str]:
    settings, names = by_setting(group), group.differing()
    figure = f"quality{f'_{number + 1}' if number else ''}.png"
    labels = labels_of(settings, names)
    methods = {name: _method(group, name) for name in SAMPLERS}
    quality_figure(folder / figure, labels, [setting.scores for setting in settings], methods, group.scores["n"].iloc[0])
    if parts > 1:
        yield f"## {title}"
    yield _about_judges(group)
    if len(names) > MAX_NAMED:
        yield table(["", *names], [[label, *values_of(s, names)] for label, s in zip(labels, settings, strict=True)], range(99))
        names = []
    yield from _same_scores(settings, labels)
    yield f"![quality beside cost, by setting]({figure})"
    if len(group.about) > len(settings):
        yield "Each small dot is a seed; a large one is the mean of a setting, its whiskers the standard deviation over seeds."
    for prefix, head, measures in [
        *((f"{name}.", method, OF_SAMPLER) for name, method in methods.items()), ("", "One-step denoising", OF_MODEL)
    ]:  # fmt: skip
        shown = {prefix + key: m for key, m in measures.items() if group.scores[prefix + key].notna().any()}
        # FID depends on the judge; beside its floor, which the same judge gives, much of that cancels.
        if group.about["judge"].nunique() > 1:
            shown.pop(f"{prefix}classifier.fid", None)
        if shown:
            yield f"##{'#' * (parts > 1)} {head}"
            yield from _tables(settings, labels, names, shown)
    if (group.scores[[f"{name}.fid_over_floor" for name in SAMPLERS]].min() < 1).any():
        yield "Below 1, samples are closer to the training images than other real images are, which copying would also achieve."


def _tables(settings: list[Experiments], labels: list[str], names: list[str], measures: dict[str, Measure]) -> Iterator[str]:
    """What was measured, and the differences to the first setting. names: the columns that tell settings apart, or none."""
    first_columns = [values_of(s, names) if names else [label] for s, label in zip(settings, labels, strict=True)]
    names, text = names or ["setting"], range(max(1, len(names)))
    rows = [
        [*values, f"{len(s.about)}", *(with_spread(s.scores[key], m.scale, m.unit) for key, m in measures.items())]
        for s, values in zip(settings, first_columns, strict=True)
    ]
    yield table([*names, "seeds", *(m.title for m in measures.values())], rows, text)
    tested = {key: m for key, m in measures.items() if m.better}
    if len(settings) < 2 or not tested:
        return
    first, *others = settings
    rows = []
    for setting, values in zip(others, first_columns[1:], strict=True):
        found = {key: difference(_paired(setting, key), _paired(first, key)) for key in tested}
        rows.append([*values, *(in_words(found[key], m.better, m.scale, m.unit) for key, m in tested.items())])
    committed = ", the committed setting" if first.about["committed"].any() else ""
    yield f"Against {labels[0]}{committed} (± is how far seeds alone go in 19 of 20 cases):"
    yield table([*names, *(m.title for m in tested.values())], rows, text)


def _paired(setting: Experiments, key: str) -> pd.Series:
    """A score by seed and judge."""
    return setting.scores[key].set_axis(pd.MultiIndex.from_frame(setting.about[["seed", "judge"]]))


def _method(group: Experiments, name: str) -> str:
    methods = [method for method in group.about[name].unique() if method]
    return methods[0] if len(methods) == 1 else f"sample_{name}"


def _about_judges(group: Experiments) -> str:
    judges, n = group.about["judge"].unique(), group.scores["n"].iloc[0]
    text = f"Measured over {n:,.0f} samples in the features of "
    if len(judges) == 1:
        return f"{text}one judge (weights `{judges[0][:8]}`). *Floor* is the FID of as many real test images."
    return (
        f"{text}{len(judges)} judges, since each seed trains its own. FIDs of different judges are not comparable, so only FID / "
        "floor is shown, the floor being what as many real test images score with the same judge; what judges still differ by is "
        "part of the spread."
    )


def _same_scores(settings: list[Experiments], labels: list[str]) -> Iterator[str]:
    """Settings whose scores are equal to the last digit did not change the samples, or were not evaluated anew."""
    by_scores: dict[tuple, dict[str, None]] = {}
    for setting, label in zip(settings, labels, strict=True):
        for scores in setting.scores[[f"{name}.classifier.fid" for name in SAMPLERS]].itertuples(index=False, name=None):
            by_scores.setdefault(scores, {})[label] = None
    alike = list(dict.fromkeys(" and ".join(found) for found in by_scores.values() if len(found) > 1))
    if alike:
        yield (
            f"The same FID to the last digit have **{'**; **'.join(alike)}**: what differs there does not change the samples, or "
            "`evaluate` has not run since."
        )


def _csv(found: Experiments, groups: list[tuple[str, Experiments]]) -> str:
    """A row per experiment: its group, what differs, and all scores."""
    names = found.differing()
    group_of = pd.Series({name: title for title, group in groups for name in group.about.index}, name="group")
    about = found.about[["commit", "seed", "judge"]]
    frame = pd.concat([group_of.loc[about.index], about, found.settings[names], found.scores.dropna(axis=1, how="all")], axis=1)
    return frame.to_csv(index_label="experiment", float_format="%.6g")
