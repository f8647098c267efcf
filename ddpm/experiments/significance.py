"""What differences are worth beside the spread over seeds: mean, standard deviation, and when a difference is more than noise."""

import math
from typing import NamedTuple

import pandas as pd

from ddpm.plots.numbers import measured

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom. With three seeds the standard error itself is a guess,
# and twice of it would call noise a gain in one of five comparisons.
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


class Difference(NamedTuple):
    """Mean of one setting minus mean of another, and how large noise alone would make it (95 %); None where that is unknown."""

    value: float
    margin: float | None

    @property
    def is_noise(self) -> bool:
        return self.margin is not None and abs(self.value) <= self.margin


def difference(a: pd.Series, b: pd.Series) -> Difference:
    """Of the values of two settings, each indexed by what makes two runs a pair: (seed, judge). NaN is left out.

    Over the pairs that both have, if there are two or more, or all that one side has: what a seed or its judge adds to both
    cancels. Otherwise between the means (Welch), with the degrees of freedom of the smaller side.
    """
    a, b = a.dropna(), b.dropna()
    pairs = a.index.intersection(b.index)
    fewest = min(len(a), len(b))
    if len(pairs) >= 2:
        d = a[pairs] - b[pairs]
        return _judged(d.mean(), d.std() / math.sqrt(len(d)), len(d) - 1)
    if fewest < 2:
        a, b = (a[pairs], b[pairs]) if len(pairs) else (a, b)
        return Difference(float(a.mean() - b.mean()), None)
    value = a.mean() - b.mean()
    return _judged(value, math.sqrt(a.var() / len(a) + b.var() / len(b)), fewest - 1)


def _judged(value: float, standard_error: float, freedom: int) -> Difference:
    # Equal differences in a few runs, as of a share of 500 images, do not mean that there is no spread.
    if value != 0 and standard_error <= 1e-9 * abs(value):
        return Difference(float(value), None)
    return Difference(float(value), float(t95(freedom) * standard_error))


def t95(freedom: int) -> float:
    """How many standard errors a difference must exceed; never fewer than two, and rounded up from ten degrees of freedom on."""
    return T95[min(freedom, len(T95)) - 1]


def with_spread(values: pd.Series, scale: float = 1.0, unit: str = "") -> str:
    """Mean ± standard deviation of values times `scale`; the mean to three digits of a single value or of equal ones; a dash for
    none."""
    values = values.dropna() * scale
    if values.empty:
        return "-"
    mean, sd = float(values.mean()), float(values.std())
    if sd > 1e-9 * abs(mean):
        return measured(mean, sd) + unit
    counted = not unit and mean == round(mean)
    return (f"{mean:,.0f}" if counted else measured(mean, None, 3)) + unit


def in_words(found: Difference, better: int, scale: float = 1.0, unit: str = "") -> str:
    """A difference as a table cell. better: 1 where higher is better, -1 where lower is."""
    if math.isnan(found.value):
        return "-"
    text = measured(abs(found.value) * scale, found.margin and found.margin * scale) + unit
    # A value that rounds to zero has no sign.
    sign = ("-" if found.value < 0 else "+") if text.split()[0].strip("0.%") else ""
    if found.margin is None:
        return f"{sign}{text}, spread unknown"
    if found.is_noise:
        return f"within the spread ({sign}{text})"
    return f"**{'better' if found.value * better > 0 else 'worse'}** by {text}"
