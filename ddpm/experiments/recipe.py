"""Recipes: named sets of changes to params.yaml, each a YAML file, and the `-S` words by which DVC applies one.

    about: one line
    parameters: 35746307        # of the network
    needs: what to bring        # optional
    overrides:                  # keys of params.yaml, nested as they are there
      schedule: cosine
    extra:                      # optional: commands after the run
    - python -m stages.sweep

Nothing here imports PyTorch before values are checked, so that a list of recipes is quick.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import Field

from ddpm.core.files import InputError
from ddpm.core.params import PARAMS_FILE, Section, lookup, make, read_yaml

FOLDER = Path(__file__).parent / "recipes"
SUFFIX = ".yaml"
Line = Annotated[str, Field(min_length=1, pattern=r"^[^\n]*$")]
# What Hydra, which reads `-S` for DVC, and the unquoted $(...) of a shell both leave as it is.
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/-+.%@")
# Words that Hydra takes for something else, whatever their case.
NO_TEXT = ("null", "nan", "inf", "true", "false")


class RecipeFile(Section):
    """The content of a recipe's file."""

    about: Line
    parameters: Annotated[int, Field(ge=1)]
    needs: Line | None = None
    overrides: dict[str, Any]
    extra: list[Line] = Field(default_factory=list)


class Recipe(NamedTuple):
    """A recipe: its name, the file that it was read from, and what that says."""

    name: str
    path: Path
    content: RecipeFile


def recipe_names() -> list[str]:
    """Names of the recipes that come with the project."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def read_recipe(given: str) -> Recipe:
    """A recipe by its name, or by the path of a file of one's own. Raises InputError for an unknown or invalid one."""
    if given.endswith((SUFFIX, ".yml")):
        path = Path(given)
    else:
        path = lookup({name: FOLDER / f"{name}{SUFFIX}" for name in recipe_names()}, given, "recipe")
    content = read_yaml(path)
    try:
        return Recipe(path.stem, path, make(RecipeFile, **content))
    except InputError as error:
        raise error.within(path) from None
    except TypeError as error:  # a key that is no text
        raise InputError(str(error), key=path) from None


def list_recipes() -> str:
    """A line for each recipe of the project: name, data, parameters, and what it is."""
    lines = []
    for name in recipe_names():
        content = read_recipe(name).content
        needs = f"; needs {content.needs}" if content.needs else ""
        lines.append(f"{name:<22}{content.parameters:>11,}  {content.about}{needs}")
    return "\n".join(lines)


def read_changes(given: Sequence[str]) -> dict[str, Any]:
    """Changes as people write them behind `-S`, `train.steps=100`, nested. Raises InputError for what is no such thing."""
    changes: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        *sections, last = key.strip().split(".")
        node = changes
        for name in sections:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                break
        if not equals or not last or not isinstance(node, dict):
            raise InputError(f"{text!r} is no change of a setting; write `-S train.steps=100`", key="set_param")
        try:
            node[last] = _with_numbers(yaml.safe_load(value))
        except yaml.YAMLError:
            raise InputError(f"{text!r} has a value that cannot be read; write `-S train.steps=100`", key="set_param") from None
    return changes


def _with_numbers(value: Any) -> Any:
    """A value that PyYAML read, with 1e-4 as a number."""
    if isinstance(value, list):
        return [_with_numbers(one) for one in value]
    if isinstance(value, str) and any(sign.isdigit() for sign in value):
        try:
            number = float(value)
        except ValueError:
            return value
        return number if math.isfinite(number) else value
    return value


def merged(base: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`base`, nested as params.yaml, with some values replaced. Raises InputError, beginning with `where`, for a key that it
    does not have, with the nearest that it has."""
    result = copy.deepcopy(dict(base))
    for key, value in overrides.items():
        old = lookup(base, key, where)
        if isinstance(old, Mapping) != isinstance(value, Mapping):
            kind = "a section: write keys below it" if isinstance(old, Mapping) else "no section: it has no keys"
            raise InputError(f"{key!r} is {kind}", key=where)
        result[key] = merged(old, value, f"{where}.{key}") if isinstance(old, Mapping) else value
    return result


def full_params(recipe: Recipe, changes: Mapping[str, Any] | None = None, params: str | Path = PARAMS_FILE) -> dict[str, Any]:
    """All of params.yaml as a recipe, and then `changes`, set it, with every value checked.

    Raises InputError for a key that params.yaml does not have, and for a value that no stage would take.
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


def words(overrides: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """`key=value` of each override, for `-S`, without a space or quotes. Raises InputError for a value that would need them."""
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            yield from words(value, f"{above}{key}.")
        else:
            yield f"{above}{key}={_word(value, f'{above}{key}')}"


def _word(value: Any, key: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{','.join(_word(one, key) for one in value)}]"
    if isinstance(value, str) and value and PLAIN.issuperset(value) and value.lower() not in NO_TEXT and _is_text(value):
        return value
    raise InputError(
        f"{value!r} cannot be handed to DVC in an unquoted word; use letters, digits and _ / - + . % @ alone", key=key
    )


def _is_text(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return True
    return False


def options(overrides: Mapping[str, Any]) -> list[str]:
    """The words that apply overrides by `dvc exp run`: -S key=value for each."""
    return [word for change in words(overrides) for word in ("-S", change)]
