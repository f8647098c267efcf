"""Formats numbers with the digits that their spread supports, and Markdown tables."""

import math
from collections.abc import Collection, Sequence

UNKNOWN_SPREAD = 2  # significant digits of a value whose spread is unknown


def number(value: float | None, digits: int = 3) -> str:
    """Returns a value with that many significant digits, without an exponent from 0.0001 on; "-" for None."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if abs(value) >= 10 ** (digits - 1) else (text if "e" not in text else f"{value:.2g}")


def measured(value: float | None, sd: float | None = None, digits: int = UNKNOWN_SPREAD, places: int | None = None) -> str:
    """Returns `value ± sd` with the digits that the standard deviation supports; "-" for a value of None.

    Without sd, the value has `digits` significant digits. places: decimal places, instead of those.
    """
    if value is None:
        return "-"
    places = decimals(value, sd, digits) if places is None else places
    return f"{_rounded(value, places)} ± {_rounded(sd, places)}" if sd else _rounded(value, places)


def supported(value: float, sd: float | None = None) -> str:
    """Returns a value, without its standard deviation, with the digits that this supports."""
    return _rounded(value, decimals(value, sd))


def decimals(value: float, sd: float | None = None, digits: int = UNKNOWN_SPREAD) -> int:
    """Returns the number of decimals of a value, negative for tens and hundreds.

    It is rounded to the first digit of its standard deviation, and to one more where that digit is a 1. Without a standard
    deviation (None or 0), it has `digits` significant digits.
    """
    if sd and math.isfinite(sd):
        exponent = math.floor(math.log10(sd))
        return -exponent + (sd / 10**exponent < 2)
    return digits - 1 - math.floor(math.log10(abs(value))) if value else digits - 1


def _rounded(value: float, places: int) -> str:
    text = f"{round(value, places):,.{max(0, places)}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def fixed(value: float, sd: float | None = None, places: int = 3) -> str:
    """Returns `value ± sd` with a number of decimals, without sd if it is None or NaN."""
    return f"{value:,.{places}f}" + ("" if sd is None or math.isnan(sd) else f" ± {sd:,.{places}f}")


def percent(share: float | None) -> str:
    """Returns a share in percent with one decimal; "-" for None or NaN."""
    return "-" if share is None or math.isnan(share) else f"{share:.1%}"


def share_of(share: float | None, n: int) -> str:
    """Returns a share of n images in percent, with its standard error (`share_error`); "-" for None."""
    return "-" if share is None else f"{measured(100 * share, 100 * share_error(share, n))}%"


def share_error(share: float, n: int) -> float:
    """Returns the standard error of a share of n independent images, at least one image: the formula gives 0 at 0 and 1."""
    return max(math.sqrt(share * (1 - share) / n), 1 / n)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text: Collection[int] = (0,)) -> str:
    """Returns a Markdown table. text: indices of the columns of text; the others are aligned to the right."""
    lines = [header, [":--" if j in text else "--:" for j in range(len(header))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
