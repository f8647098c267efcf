"""Renders Markdown pages from Jinja templates, with filters that format numbers."""

import html
import re
from pathlib import Path
from typing import Any

import jinja2

from ddpm.core.files import printable
from ddpm.plots.numbers import fixed, measured, number, percent, share_of, supported, table


def literal(text: object) -> str:
    """Returns text from a file as Markdown that shows it as it is, on one line: no HTML, link, emphasis or table cell."""
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(printable(str(text)), quote=False))


FILTERS = {function.__name__: function for function in (fixed, literal, measured, number, percent, share_of, supported)}


def render(template: Path, **values: Any) -> str:
    """Returns the text of a template file, which can call `table` and the FILTERS.

    Paragraphs are separated by one blank line, and the text ends with a newline.

    Raises jinja2.UndefinedError for a name or key that `values` lack.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= FILTERS
    environment.globals["table"] = table
    text = environment.get_template(template.name).render(values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
