"""Tables in Markdown, with numbers to as many digits as they carry."""

from collections.abc import Sequence


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


def percent(share: float | None) -> str:
    """A share as percent with one digit; a dash for none."""
    return "-" if share is None else f"{share:.1%}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers and set right."""
    lines = [header, [":--"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
