"""Recipes: named sets of changes to params.yaml, each a YAML file, and the `-S` options by which DVC applies one.

    about: one line
    parameters: 35746307        # of the network
    needs: raw data or hardware # optional
    overrides:                  # keys of params.yaml, nested as they are there
      schedule: cosine
    extra:                      # optional: commands after the run
    - python -m stages.sweep

PyTorch is imported only when values are checked, so that listing the recipes is quick.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from ddpm.core.files import InputError, printable
from ddpm.core.params import PARAMS_FILE, Section, flatten, lookup, make
from ddpm.core.yaml_files import parse_yaml, read_yaml

FOLDER = Path(__file__).parent / "recipes"
RECORDS = Path("reports/recipes")
RESULTS_FILE = Path("README.md")  # holds the table of all records
SUFFIX = ".yaml"
Line = Annotated[str, Field(min_length=1, pattern=r"^[^\n]*$")]
# Characters that Hydra, which parses `-S` for DVC, and the unquoted $(...) of a shell leave unchanged.
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/-+.%@")
# Words that Hydra does not parse as text, in any case.
NO_TEXT = ("null", "nan", "inf", "true", "false")


class RecipeFile(Section):
    """The content of a recipe file.

    about: one line.
    parameters: number of parameters of the network.
    needs: what the run needs besides the project.
    overrides: changes of params.yaml, nested as there.
    extra: commands after the run.
    """

    about: Line
    parameters: Annotated[int, Field(ge=1)]
    needs: Line | None = None
    overrides: dict[str, Any]
    extra: list[Line] = Field(default_factory=list)


class Recipe(NamedTuple):
    """A recipe.

    name: name of the file, without its suffix.
    path: the file.
    content: what it holds.
    """

    name: str
    path: Path
    content: RecipeFile


def recipe_names() -> list[str]:
    """Returns the names of the recipes of the project."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def read_recipe(name: str) -> Recipe:
    """Reads a recipe by its name, or by the path of a file (.yaml, .yml). Raises InputError for an unknown or invalid one."""
    is_file = name.endswith((SUFFIX, ".yml"))
    path = Path(name) if is_file else lookup({path.stem: path for path in sorted(FOLDER.glob(f"*{SUFFIX}"))}, name, "recipe")
    content = read_yaml(path)
    try:
        return Recipe(path.stem, path, make(RecipeFile, **content))
    except InputError as error:
        raise error.within(path) from None
    except TypeError as error:  # a key is not text
        raise InputError(str(error), key=path) from None


def list_recipes() -> str:
    """Returns a line for each recipe of the project: name, parameters, description."""
    lines = []
    for name in recipe_names():
        content = read_recipe(name).content
        needs = f"; needs {content.needs}" if content.needs else ""
        lines.append(printable(f"{name:<22}{content.parameters:>11,}  {content.about}{needs}"))
    return "\n".join(lines)


def read_changes(words: Sequence[str]) -> dict[str, Any]:
    """Parses changes such as `train.steps=100` into a nested mapping. Raises InputError for one that cannot be parsed."""
    changes: dict[str, Any] = {}
    for text in words:
        key, equals, value = text.partition("=")
        *sections, last = key.strip().split(".")
        node = changes
        for name in sections:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                break
        if not equals or not last or not isinstance(node, dict):
            raise InputError(f"{text!r} is not a change of a setting; write `-S train.steps=100`", key="set_param")
        try:
            node[last] = parse_yaml(value, "set_param")
        except InputError as error:
            message = f"{text[:80]!r} has a value that cannot be read: {error.message}"
            raise InputError(message, key="set_param") from None
    return changes


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def merged(base: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns `base`, nested as params.yaml, with some values replaced.

    Raises InputError, with a key that begins with `where`, for a key that `base` lacks.
    """
    result = copy.deepcopy(dict(base))
    for key, value in overrides.items():
        old = lookup(base, key, where)
        if isinstance(old, Mapping) != isinstance(value, Mapping):
            kind = "a section; write keys below it" if isinstance(old, Mapping) else "not a section; it has no keys"
            raise InputError(f"{key!r} is {kind}", key=where)
        result[key] = merged(old, value, f"{where}.{key}") if isinstance(old, Mapping) else value
    return result


def full_params(recipe: Recipe, changes: Mapping[str, Any] | None = None, params: str | Path = PARAMS_FILE) -> dict[str, Any]:
    """Returns all of params.yaml, changed by a recipe and then by `changes`, with every value checked.

    Raises InputError for a key that params.yaml lacks, and for an invalid value.
    """
    from ddpm.experiments.all_params import AllParams

    base = read_yaml(params)
    try:
        tree = merged(base, recipe.content.overrides, "overrides")
    except InputError as error:
        raise error.within(recipe.path) from None
    try:
        tree = merged(tree, changes or {}, "changes")
    except InputError as error:
        raise InputError(f"{error.key}: {error.message}", key="set_param") from None
    try:
        make(AllParams, **tree)
    except InputError as error:
        raise error.within(recipe.path) from None
    return tree


def _word(value: Any, key: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{','.join(_word(element, key) for element in value)}]"
    if isinstance(value, str) and value and PLAIN.issuperset(value) and value.lower() not in NO_TEXT and _number(value) is None:
        return value
    raise InputError(f"{value!r} cannot be passed to DVC without quotes; use only letters, digits and _ / - + . % @", key=key)


def options(overrides: Mapping[str, Any]) -> list[str]:
    """Returns the options of `dvc exp run` that apply overrides: -S key=value for each.

    Raises InputError for a value that would need quotes.
    """
    return [word for key, value in flatten(overrides).items() for word in ("-S", f"{key}={_word(value, key)}")]
