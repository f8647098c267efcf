"""Reads and validates params.yaml; a mistake becomes an InputError of one line.

This module knows no section by name. The model of each section is defined next to the code that uses it, and a stage names the
sections that it reads: `load(dataset=DatasetName, train=Train)`.
"""

import ast
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from reprlib import Repr
from types import SimpleNamespace
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from ddpm.core.files import InputError
from ddpm.core.yaml_files import read_yaml

PARAMS_FILE = "params.yaml"
PIPELINE_FILE = "dvc.yaml"
# Every stage reads this section and none declares it in dvc.yaml: nothing in it changes a result.
UNDECLARED = "runtime"
Seed = Annotated[int, Field(ge=0, lt=2**63)]
_SHORT = Repr()  # of values in messages, which may be endless
_SHORT.maxstring = _SHORT.maxother = 80
MISSING = f"missing; add it (the committed {PARAMS_FILE} shows a value)"


class Section(BaseModel):
    """Base class of a section: every key is required, and unknown keys and other types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def as_written(self) -> dict[str, Any]:
        """Returns the values as params.yaml holds them: a None that was read from a word (`OrWord`) becomes that word."""
        fields = type(self).model_fields
        return {name: _word_of(fields[name].metadata) if value is None else value for name, value in self.model_dump().items()}


def lookup(registry: Mapping[str, Any], name: str, key: str) -> Any:
    """Returns registry[name]. Raises InputError of this key, with the valid names, for an unknown name."""
    if isinstance(name, str) and name in registry:  # a list from a JSON file cannot be looked up
        return registry[name]
    raise InputError(f"{_SHORT.repr(name)} is unknown{_choices(name, registry)}", key=key)


def keys_of(path: str, registry: str) -> tuple[str, ...]:
    """Returns the keys of a registry, a dict that a file below ddpm/ writes out, from the text of that file.

    So help texts name them without importing PyTorch.
    """
    module = ast.parse((Path(__file__).parent.parent / path).read_text(encoding="utf-8"))
    assigned = (node for node in module.body if isinstance(node, ast.Assign | ast.AnnAssign))
    targets = ((node.targets[0] if isinstance(node, ast.Assign) else node.target, node.value) for node in assigned)
    (keys,) = (value.keys for target, value in targets if isinstance(target, ast.Name) and target.id == registry)
    return tuple(ast.literal_eval(key) for key in keys)


def OneOf(registry: Mapping[str, Any]) -> AfterValidator:  # noqa: N802 (reads as a type in annotations)
    """Returns the annotation of a str that must be a key of the registry."""

    def check(value: str) -> str:
        if value not in registry:
            raise PydanticCustomError("one_of", "is unknown", {"names": list(registry)})
        return value

    return AfterValidator(check)


def OrWord(word: str) -> BeforeValidator:  # noqa: N802
    """Returns the annotation of an optional value for which params.yaml may hold `word`, which is read as None."""
    return BeforeValidator(_Word(word))


class _Word(str):
    """Reads the word as None. An object, so that error messages can name the word."""

    def __call__(self, value: Any) -> Any:
        return None if value == self else value


def load(path: str | os.PathLike = PARAMS_FILE, /, **kinds: Any) -> SimpleNamespace:
    """Reads the named top-level entries of params.yaml and validates each as its type, a Section or an annotated scalar.

    Raises InputError for the first mistake. Its key is the full path of the setting, such as "train.steps"; its message has the
    value, what is allowed, and the nearest valid name.
    """
    raw = read_yaml(path)
    _check_section_names(path, raw)
    return SimpleNamespace(**{name: _validated(raw, name, kind, path) for name, kind in kinds.items()})


def _validated(raw: dict, name: str, kind: Any, path: str | os.PathLike) -> Any:
    if name not in raw:
        raise InputError(MISSING, key=name, where=path)
    is_section = bool(_fields(kind))
    try:
        # A section is strict by its own config; pydantic takes no second one for it.
        return TypeAdapter(kind).validate_python(raw[name], strict=None if is_section else True)
    except ValidationError as error:
        key, message = _explain(error, kind)
        raise InputError(message, key=".".join([name, *key]), where=path) from None


def make(kind: type[Section], **values: Any) -> Section:
    """Returns a section of values from elsewhere than params.yaml. Raises InputError whose key is the setting."""
    try:
        return kind(**values)
    except ValidationError as error:
        key, message = _explain(error, kind)
        raise InputError(message, key=".".join(key)) from None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested mappings by their dotted keys, as DVC writes them."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        values |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values


def declared_sections(path: str | os.PathLike = PARAMS_FILE) -> set[str]:
    """Returns the sections that the stages declare in dvc.yaml, which lies next to params.yaml; none without it."""
    pipeline = Path(path).with_name(PIPELINE_FILE)
    stages = read_yaml(pipeline).get("stages", {}).values() if pipeline.exists() else ()
    return {str(name).split(".")[0] for stage in stages for name in stage.get("params", [])}


def _check_section_names(path: str | os.PathLike, raw: dict) -> None:
    """Raises InputError for a section that no stage declares in dvc.yaml, and that all would ignore."""
    if known := declared_sections(path):
        for key in raw:
            if key not in known | {UNDECLARED}:
                raise InputError(f"unknown section{_choices(str(key), sorted(known | {UNDECLARED}))}", key=str(key), where=path)


def _explain(errors: ValidationError, kind: Any) -> tuple[list[str], str]:
    """Returns the path of a setting below its section, and the message.

    A mistyped key is reported as a missing and as an unknown one; the second says what to do.
    """
    error, *others = errors.errors()
    if error["type"] == "missing":
        unknown = {str(other["loc"][-1]): other for other in others if other["type"] == "extra_forbidden"}
        error = next((unknown[name] for name in difflib.get_close_matches(error["loc"][-1], unknown, n=1, cutoff=0.5)), error)
    key, value = [str(part) for part in error["loc"]], error["input"]
    section, rules = _walk(kind, key)
    if error["type"] == "extra_forbidden":
        return key, f"unknown key{_choices(key[-1], _fields(section))}"
    if error["type"] == "missing":
        return key, MISSING
    if error["type"] == "section":  # from a section whose class depends on its values
        return [*key, error["ctx"]["key"]], error["ctx"]["message"]
    if error["type"] == "one_of":
        return key, f"{_SHORT.repr(value)} is unknown{_choices(value, error['ctx']['names'])}"
    if error["type"] == "value_error":
        return key, f"{_SHORT.repr(value)} {error['ctx']['error']}"
    if error["type"] == "model_type":
        return key, f"{_SHORT.repr(value)} is no section; write its keys below it: {', '.join(_fields(section))}"
    needs = error["msg"].replace("Input should ", "must ").replace("List should ", "must ")
    needs = needs.replace("a valid integer", "an integer").replace("a valid ", "a ")
    word = _word_of(rules)
    return key, f"{_SHORT.repr(value)} {needs}{f', or {word!r}' if word else ''}{_bounds(rules)}"


def _fields(kind: Any) -> dict[str, Any]:
    """Returns the fields of a section by their names in params.yaml, none for another type."""
    fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
    return {field.alias or name: field for name, field in fields.items()}


def _walk(kind: Any, names: list[str]) -> tuple[Any, list]:
    """Returns the innermost section on the path to a key, and the rules of the key in it."""
    for name in names:
        field = _fields(kind).get(name)
        if field is None or not _fields(field.annotation):
            return kind, field.metadata if field else []
        kind = field.annotation
    return kind, []


def _word_of(metadata: list) -> str | None:
    return next((str(rule.func) for rule in metadata if isinstance(getattr(rule, "func", None), _Word)), None)


def _bounds(metadata: list) -> str:
    """Returns both ends of a range; pydantic's message names only one."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [f"{sign} {getattr(rule, name)}" for rule in metadata for name, sign in signs.items() if hasattr(rule, name)]
    return f" (allowed: {' and '.join(limits)})" if limits else ""


def _choices(name: str, valid: Any) -> str:
    names = list(valid)
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}? Valid: {', '.join(names)}" if nearest else f"; valid: {', '.join(names)}"
