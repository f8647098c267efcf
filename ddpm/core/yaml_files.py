"""Reads YAML by the rules of YAML 1.2, as DVC does: 010 is ten, and yes, 1:30 and 2026-01-31 are text.

PyYAML follows YAML 1.1. Unlike it, this module also refuses a key that is given twice, and a value that contains itself.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ddpm.core.files import InputError, check_regular

_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
# The plain scalars that are no text: type, pattern, first characters, and how they are read.
_SCALARS: tuple[tuple[str, str, str, Callable[[str], Any]], ...] = (
    ("null", "~|null|Null|NULL|", "~nN", lambda text: None),
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF", lambda text: {"true": True, "false": False}[text.lower()]),
    ("int", "[-+]?[0-9]+", "-+0123456789", int),
    ("float", _FLOAT, "-+0123456789.", lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))),
)
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Knows the types of _SCALARS, text, lists and mappings; any other tag is an error."""

    yaml_implicit_resolvers: ClassVar = {"<": [(f"{_TAG}merge", re.compile("^<<$"))]}
    yaml_constructors: ClassVar = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag in (None, f"{_TAG}str", f"{_TAG}seq", f"{_TAG}map")
    }

    def construct_document(self, node: yaml.Node) -> Any:
        self.deep_construct = True  # at once, so that PyYAML notices a value that contains itself
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        keys = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
                keys.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _constructor(kind: str, read: Callable[[str], Any]) -> Callable[[_Loader, yaml.Node], Any]:
    def construct(loader: _Loader, node: yaml.Node) -> Any:
        text = loader.construct_scalar(node)
        try:
            return read(text)
        except (ValueError, KeyError):  # an explicit tag, such as !!int x; more digits than Python reads
            raise yaml.MarkedYAMLError(problem=f"{text[:20]!r} cannot be read as {kind}", problem_mark=node.start_mark) from None

    return construct


for _kind, _pattern, _first, _read in _SCALARS:
    # A float pattern fits an integer too: the first match counts. An empty value has no first character.
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"^({_pattern})$"), [*_first, *([""] if _kind == "null" else [])])
    _Loader.add_constructor(_TAG + _kind, _constructor(_kind, _read))


def parse_yaml(text: str, key: str | os.PathLike) -> Any:
    """Returns the value of a YAML text. Raises InputError of this key, with the line of the mistake."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise InputError("not valid YAML (nested too deep)", key=key) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: a character code that does not exist
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise InputError(f"not valid YAML ({problem})", key=f"{os.fspath(key)}{where}") from None


def read_yaml(path: str | os.PathLike) -> dict:
    """Reads a YAML mapping. Raises InputError, with the line of a mistake."""
    check_regular(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}); run from the folder that holds it", key=path) from None
    except UnicodeDecodeError:
        raise InputError("not valid YAML (not UTF-8)", key=path) from None
    value = parse_yaml(text, path)
    if not isinstance(value, dict):
        raise InputError("holds no `key: value` lines", key=path)
    return value
