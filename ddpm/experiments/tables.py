"""Experiments as tables of one index, which of them can be compared, and which are one setting."""

from typing import NamedTuple

import numpy as np
import pandas as pd

CODE = "code"  # stands among the settings
MAX_NAMED = 3  # differing settings by which one is called in figures and sentences; with more, by a number
SAMPLERS = ("ddpm", "ddim")
# What decides which images are judged, and by which judge but for its seed. Across different values nothing is compared.
JUDGED_BY = ("dataset", "prepare_data", "train_classifier")


class Measure(NamedTuple):
    """A column of the tables: its title, and whether higher (1) or lower (-1) is better; 0 for what no difference is tested of.

    Its numbers are multiplied by `scale` and followed by `unit`.
    """

    title: str
    better: int
    scale: float = 1.0
    unit: str = ""


# By key below the sampler in metrics.json, or in COMPUTED.
OF_SAMPLER = {
    "classifier.fid": Measure("FID ↓", 0),
    "fid_over_floor": Measure("FID / floor ↓", -1),
    "inception.fid": Measure("Inception FID ↓", -1),
    "accuracy": Measure("accuracy ↑", 1, 100, "%"),
    "classifier.precision": Measure("precision ↑", 1),
    "classifier.recall": Measure("recall ↑", 1),
    "memorization.nn_auc": Measure("nn_auc (.5)", 0),
    "cost.nfe": Measure("NFE", 0),
    "seconds_per_1000": Measure("seconds per 1,000 images", 0),
}

OF_MODEL = {
    "reconstruction.psnr": Measure("PSNR in dB ↑", 0),
    "psnr_over_wiener": Measure("PSNR above the Wiener filter's ↑", 1, 1.0, " dB"),
}

COMPUTED = ("fid_over_floor", "seconds_per_1000")
_READ = ["classifier.fid_floor", "cost.images_per_second", *(key for key in OF_SAMPLER if key not in COMPUTED)]
# The keys of metrics.json that are read.
SCORES = ["n", "reconstruction.psnr", "reconstruction.psnr_wiener", *(f"{name}.{key}" for name in SAMPLERS for key in _READ)]


class Experiments(NamedTuple):
    """Experiments, a row each in three tables of one index, their names.

    about: commit, committed (it is that commit's own run), seed, judge (SHA-256), data, and per sampler the name of its method.
    settings: every setting but the seed, as text, and the code; empty where an older params.yaml has no such key.
    scores: the keys of SCORES. left_out: names of those that are not here, and why.
    """

    about: pd.DataFrame
    settings: pd.DataFrame
    scores: pd.DataFrame
    left_out: dict[str, str]

    def take(self, rows: np.ndarray) -> "Experiments":
        """Some rows, by a mask."""
        return Experiments(self.about[rows], self.settings[rows], self.scores[rows], self.left_out)

    def differing(self) -> list[str]:
        """Names of the settings that are not the same in all rows that have them."""
        return [name for name, values in self.settings.items() if values[values != ""].nunique() > 1]


def with_computed(scores: pd.DataFrame) -> pd.DataFrame:
    """With FID over its floor, which the same judge gives, seconds for 1,000 images, and PSNR above the Wiener filter's."""
    scores = scores.assign(psnr_over_wiener=scores["reconstruction.psnr"] - scores["reconstruction.psnr_wiener"])
    for name in SAMPLERS:
        floor, speed = scores[f"{name}.classifier.fid_floor"], scores[f"{name}.cost.images_per_second"]
        scores[f"{name}.fid_over_floor"] = scores[f"{name}.classifier.fid"] / floor.where(floor > 0)
        scores[f"{name}.seconds_per_1000"] = 1000 / speed.where(speed > 0)
    return scores


def comparable(found: Experiments) -> list[tuple[str, Experiments]]:
    """Experiments over the same images, n and kind of judge, with a title for each group; the committed run's group first."""
    names = [name for name in found.differing() if name.split(".")[0] in JUDGED_BY]
    key = found.settings[names].assign(n=found.scores["n"], data=found.about["data"])
    # All else equal, images may still differ by their raw files; their hash then has to tell them apart.
    told = [name for name in names if name != "dataset"] or ["data"] * (key["data"].nunique() > 1 and "dataset" not in names)
    groups = []
    for _, rows in key.groupby(list(key), sort=False, dropna=False):
        group = found.take(found.about.index.isin(rows.index))
        dataset, n = group.settings.get("dataset", pd.Series(["samples"])).iloc[0], rows["n"].iloc[0]
        groups.append((", ".join([dataset, f"n = {n:,.0f}", *(f"{name} {rows[name].iloc[0][:12]}" for name in told)]), group))
    return sorted(groups, key=lambda pair: (not pair[1].about["committed"].any(), -len(pair[1].about)))


def by_setting(group: Experiments) -> list[Experiments]:
    """The experiments of each setting, which differ by seed alone; that of the last commit first, then by the FID of DDPM."""
    names = group.differing()
    if not names:
        return [group]
    settings = [group.take(group.about.index.isin(rows.index)) for _, rows in group.settings.groupby(names, sort=False)]
    committed = group.about.index[group.about["committed"]][:1]
    return sorted(settings, key=lambda e: (not e.about.index.isin(committed).any(), e.scores["ddpm.fid_over_floor"].mean()))


def values_of(setting: Experiments, names: list[str]) -> list[str]:
    """The named settings of one setting; a dash for one that it does not have."""
    return [setting.settings[name].iloc[0] or "-" for name in names]


def labels_of(settings: list[Experiments], names: list[str]) -> list[str]:
    """Such as "schedule cosine, train.steps 5000", with the section only where two names would be alike without it."""
    if not 0 < len(names) <= MAX_NAMED:
        return [f"setting {number + 1}" for number in range(len(settings))]
    last = [name.split(".")[-1] for name in names]
    short = [name if last.count(end) > 1 else end for name, end in zip(names, last, strict=True)]
    return [", ".join(map(" ".join, zip(short, values_of(setting, names), strict=True))) for setting in settings]
