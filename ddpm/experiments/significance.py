"""Tests differences between settings against the spread over seeds, and formats means and differences."""

import math
from typing import NamedTuple

import pandas as pd
from scipy.stats import ttest_ind, ttest_rel

from ddpm.plots.numbers import measured

CONFIDENCE = 0.95
TINY = 1e-9  # relative to the value; a smaller standard deviation is rounding


class Difference(NamedTuple):
    """The mean of one setting minus the mean of another.

    value: the difference.
    margin: half the width of its 95 % confidence interval; None if the spread over seeds is unknown.
    """

    value: float
    margin: float | None

    @property
    def is_significant(self) -> bool:
        """Whether the confidence interval excludes 0; False if it is unknown."""
        return self.margin is not None and abs(self.value) > self.margin


def difference(a: pd.Series, b: pd.Series) -> Difference:
    """Returns the difference of the values of two settings. Their index tells which runs are a pair: (seed, classifier).

    Uses Student's t test on the pairs if there are two or more, since effects of a seed and its classifier on both sides cancel,
    else Welch's t test with the degrees of freedom of Welch and Satterthwaite. With fewer than two values on one side the margin
    is None; the value is then that of the pair, if there is one. NaN is left out.
    """
    a, b = a.dropna(), b.dropna()
    pairs = a.index.intersection(b.index)
    if len(pairs) >= 2 or (len(pairs) and min(len(a), len(b)) < 2):
        a, b = a[pairs], b[pairs]
        test, spread = ttest_rel, (a - b).std()
    else:
        test, spread = (lambda a, b: ttest_ind(a, b, equal_var=False)), math.hypot(a.std(), b.std())
    value = float(a.mean() - b.mean())
    if math.isnan(spread) or math.isnan(value):
        return Difference(value, None)
    if spread <= TINY * abs(value):
        # Equal differences in a few runs, as of a share of 500 images, do not prove that there is no spread.
        return Difference(value, None if value else 0.0)
    low, high = test(a, b).confidence_interval(CONFIDENCE)
    return Difference(value, float(high - low) / 2)


def format_mean(values: pd.Series, scale: float = 1.0, unit: str = "") -> str:
    """Returns mean ± standard deviation of values times `scale`; three digits for a single value or equal ones; "-" for none."""
    values = values.dropna() * scale
    if values.empty:
        return "-"
    mean, sd = float(values.mean()), float(values.std())
    if sd > TINY * abs(mean):
        return measured(mean, sd) + unit
    is_count = not unit and mean == round(mean)
    return (f"{mean:,.0f}" if is_count else measured(mean, None, 3)) + unit


def format_difference(difference: Difference, better: int, scale: float = 1.0, unit: str = "") -> str:
    """Returns a difference as a table cell. better: 1 where higher is better, -1 where lower is."""
    value, margin = difference
    if math.isnan(value):
        return "-"
    text = measured(abs(value) * scale, margin and margin * scale) + unit
    # A value that rounds to zero has no sign.
    sign = ("-" if value < 0 else "+") if text.split()[0].strip("0.%") else ""
    if margin is None:
        return f"{sign}{text}, spread unknown"
    if not difference.is_significant:
        return f"within the spread ({sign}{text})"
    return f"**{'better' if value * better > 0 else 'worse'}** by {text}"
