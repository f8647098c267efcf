"""Experiments as tables, the metrics that are compared, and the grouping by what can be compared and by setting."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from ddpm.evaluation.evaluator import CLASSIFIER
from ddpm.evaluation.feature_metrics import METRICS
from ddpm.features.extractors import EXTRACTORS
from ddpm.report.summary import SAMPLES

CODE = "code"  # is a column of the settings
MAX_NAMED = 3  # differing settings that are named in figures and sentences; with more, settings are numbered
# Sections that determine the images and, but for its seed, the classifier. Different values are never compared.
GROUPED_BY = ("dataset", "prepare_data", "train_classifier")


class Measure(NamedTuple):
    """A column of the tables.

    title: its heading.
    better: 1 if higher is better, -1 if lower is, 0 if differences are not tested.
    scale: factor of the printed numbers.
    unit: text after the printed numbers.
    """

    title: str
    better: int
    scale: float = 1.0
    unit: str = ""


def _measures() -> dict[str, Measure]:
    """Columns for METRICS in the features of the classifier, by key below a set of samples in metrics.json."""
    measures = {}
    for metric in METRICS.values():
        if metric.compared:
            better = {"higher": 1, "lower": -1}.get(metric.better, 0)
            title = metric.title + {1: " ↑", -1: " ↓", 0: f" ({metric.better})"}[better]
            measures[f"classifier.{metric.key}"] = Measure(title, better, *((100, "%") if metric.share else ()))
    return measures


# By key below a set of samples in metrics.json, or in COMPUTED. FID depends on the classifier, whose seed differs between runs.
OF_SAMPLES = {
    "classifier.fid": Measure("FID ↓", 0),
    "fid_over_floor": Measure("FID / floor ↓", -1),
    **{f"{name}.fid": Measure(f"{name.capitalize()} FID ↓", -1) for name in EXTRACTORS if name != CLASSIFIER},
    "accuracy": Measure("accuracy ↑", 1, 100, "%"),
    **{key: measure for key, measure in _measures().items() if key != "classifier.fid"},
    "memorization.nn_auc": Measure("nn_auc (.5)", 0),
    "cost.nfe": Measure("NFE", 0),
    "seconds_per_1000": Measure("seconds per 1,000 images", 0),
}
OF_MODEL = {
    "reconstruction.psnr": Measure("PSNR in dB ↑", 0),
    "psnr_over_wiener": Measure("PSNR above the Wiener filter's ↑", 1, 1.0, " dB"),
}
COMPUTED = ("fid_over_floor", "seconds_per_1000")
_READ = ["classifier.fid_floor", "cost.images_per_second", *(key for key in OF_SAMPLES if key not in COMPUTED)]
# The keys of metrics.json that are read.
SCORES = ["n", "reconstruction.psnr", "reconstruction.psnr_wiener", *(f"{name}.{key}" for name in SAMPLES for key in _READ)]


class Experiments(NamedTuple):
    """Experiments as three tables with a row for each, indexed by their names.

    about: commit, committed (whether it is the commit's own run), seed, classifier (SHA-256), data, and the sampler of each set
        of samples.
    settings: every setting but the seed, as text, and the code; empty where an older params.yaml lacks the key.
    scores: the keys of SCORES.
    left_out: names of experiments that are not in the tables, and why.
    """

    about: pd.DataFrame
    settings: pd.DataFrame
    scores: pd.DataFrame
    left_out: dict[str, str]

    def take(self, rows: np.ndarray) -> "Experiments":
        """Returns some rows, selected by a mask."""
        return Experiments(self.about[rows], self.settings[rows], self.scores[rows], self.left_out)

    def differing(self) -> list[str]:
        """Returns the names of settings that differ between rows, where they are not empty."""
        return [name for name, values in self.settings.items() if values[values != ""].nunique() > 1]


def with_computed(scores: pd.DataFrame) -> pd.DataFrame:
    """Returns scores with FID / floor, seconds per 1,000 images, and the PSNR above that of the Wiener filter."""
    scores = scores.assign(psnr_over_wiener=scores["reconstruction.psnr"] - scores["reconstruction.psnr_wiener"])
    for name in SAMPLES:
        floor, speed = scores[f"{name}.classifier.fid_floor"], scores[f"{name}.cost.images_per_second"]
        scores[f"{name}.fid_over_floor"] = scores[f"{name}.classifier.fid"] / floor.where(floor > 0)
        scores[f"{name}.seconds_per_1000"] = 1000 / speed.where(speed > 0)
    return scores


def comparable(experiments: Experiments) -> list[tuple[str, Experiments]]:
    """Returns groups of the same images, n and kind of classifier, each with a title; that of the committed run first."""
    names = [name for name in experiments.differing() if name.split(".")[0] in GROUPED_BY]
    key = experiments.settings[names].assign(n=experiments.scores["n"], data=experiments.about["data"])
    # With equal settings, images may still differ by their raw files; their hash then tells the groups apart.
    shown = [name for name in names if name != "dataset"] or ["data"] * (key["data"].nunique() > 1 and "dataset" not in names)
    groups = []
    for _, rows in key.groupby(list(key), sort=False, dropna=False):
        group = experiments.take(experiments.about.index.isin(rows.index))
        dataset, n = group.settings.get("dataset", pd.Series(["samples"])).iloc[0], rows["n"].iloc[0]
        groups.append((", ".join([dataset, f"n = {n:,.0f}", *(f"{name} {rows[name].iloc[0][:12]}" for name in shown)]), group))
    return sorted(groups, key=lambda pair: (not pair[1].about["committed"].any(), -len(pair[1].about)))


def by_setting(group: Experiments) -> list[Experiments]:
    """Returns the experiments of each setting, which differ by seed alone; the committed one first, then by FID of DDPM."""
    names = group.differing()
    if not names:
        return [group]
    settings = [group.take(group.about.index.isin(rows.index)) for _, rows in group.settings.groupby(names, sort=False)]
    committed = group.about.index[group.about["committed"]][:1]
    return sorted(settings, key=lambda s: (not s.about.index.isin(committed).any(), s.scores["ddpm.fid_over_floor"].mean()))


def values_of(setting: Experiments, names: list[str]) -> list[str]:
    """Returns the values of the named settings; "-" for one that the setting lacks."""
    return [setting.settings[name].iloc[0] or "-" for name in names]


def labels_of(settings: list[Experiments], names: list[str]) -> list[str]:
    """Returns labels such as "schedule cosine, steps 5000"; the section is named where two keys end alike."""
    if not 0 < len(names) <= MAX_NAMED:
        return [f"setting {number + 1}" for number in range(len(settings))]
    last = [name.split(".")[-1] for name in names]
    short = [name if last.count(end) > 1 else end for name, end in zip(names, last, strict=True)]
    return [", ".join(map(" ".join, zip(short, values_of(setting, names), strict=True))) for setting in settings]
