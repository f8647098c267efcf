"""Tables in Markdown, with numbers to as many digits as they carry."""

import math
from collections.abc import Collection, Sequence

# Significant digits of a value whose spread nobody knows.
UNKNOWN_SPREAD = 2


def number(value: float | None, digits: int = 3) -> str:
    """A value to so many significant digits, without an exponent; a dash for none."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if abs(value) >= 10 ** (digits - 1) else (text if "e" not in text else f"{value:.2g}")


def measured(value: float | None, sd: float | None = None, digits: int = UNKNOWN_SPREAD, places: int | None = None) -> str:
    """`value ± sd` to the digits that the spread supports; without a spread, to so many significant digits; a dash for none.

    places: decimal places, for a value that takes over those of another.
    """
    if value is None:
        return "-"
    places = decimals(value, sd, digits) if places is None else places
    return f"{_fixed(value, places)} ± {_fixed(sd, places)}" if sd else _fixed(value, places)


def supported(value: float, sd: float | None = None) -> str:
    """A value alone, to the digits that a standard deviation supports."""
    return _fixed(value, decimals(value, sd))


def decimals(value: float, sd: float | None = None, digits: int = UNKNOWN_SPREAD) -> int:
    """Decimals that a value supports, negative for tens and hundreds: to the first digit of its standard deviation, and one
    more where that digit is a 1; without a standard deviation (None or 0), to so many significant digits of the value."""
    if sd:
        exponent = math.floor(math.log10(sd))
        return -exponent + (sd / 10**exponent < 2)
    return digits - 1 - math.floor(math.log10(abs(value))) if value else digits - 1


def _fixed(value: float, places: int) -> str:
    text = f"{round(value, places):,.{max(0, places)}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def percent(share: float | None) -> str:
    """A share as percent with one digit; a dash for none."""
    return "-" if share is None else f"{share:.1%}"


def share_of(share: float | None, n: int) -> str:
    """A share of n images as percent, with the standard error of counting so many; a dash for none.

    At 0 and 1 the usual formula gives no error: one image more or less is taken there.
    """
    return "-" if share is None else f"{measured(100 * share, 100 * share_error(share, n))}%"


def share_error(share: float, n: int) -> float:
    """Standard error of a share of n independent images, at least that of one image."""
    return max(math.sqrt(share * (1 - share) / n), 1 / n)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text: Collection[int] = (0,)) -> str:
    """A Markdown table; the columns whose numbers are in `text` hold text, the others numbers, which are set right."""
    lines = [header, [":--" if j in text else "--:" for j in range(len(header))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
