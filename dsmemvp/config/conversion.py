"""Values by key -> a group of a recipe; pydantic's errors in one line that names place, key and what there may be."""

import difflib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from dsmemvp.config.yaml_text import shown
from dsmemvp.errors import UserError

Values = dict[str, tuple[Any, str]]
"""Key -> its value, and where that was given."""
TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
}
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
OUTSIDE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
"""pydantic's names for a number outside its range."""


def groups_of(kind: type) -> dict[str, Any]:
    """The fields that are groups of keys themselves."""
    return {name: hint for name, hint in get_type_hints(kind).items() if is_dataclass(hint)}


def keys_of(kind: type, prefix: str = "") -> list[str]:
    """All keys of a group, written out: training.epochs."""
    groups, found = groups_of(kind), []
    for field in fields(kind):
        key = f"{prefix}{field.name}"
        found += keys_of(groups[field.name], f"{key}.") if field.name in groups else [key]
    return found


def converted(kind: Any, prefix: str, values: Values, **ready: Any) -> Any:
    """A group of keys that all begin with `prefix`, of its values and what is ready. Raises UserError."""
    names = {field.name for field in fields(kind)}
    given = {name: values[f"{prefix}{name}"][0] for name in names if f"{prefix}{name}" in values}
    try:
        return kind(**given, **ready)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # a rule between keys, whose text begins with the name of one
            raise UserError(f"{prefix}{_problem(first, {})}") from None
        name, *inside = first["loc"]
        key = f"{prefix}{name}"
        raise UserError(f"{values[key][1]}: {key}: {_problem(first, _schema(kind, str(name), bool(inside)))}") from None


@cache
def _schema(kind: Any, name: str, item: bool) -> dict[str, Any]:
    """JSON Schema of a field, or of the items of its list."""
    found = TypeAdapter(kind).json_schema(mode="serialization")["properties"][name]
    return found["items"] if item else found


def _problem(error: Any, schema: dict[str, Any]) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] in OUTSIDE:
        return f"must be {range_of(schema)}, is {shown(error['input'])}"
    if error["type"] == "characters":
        return f"{error['msg']}, not {shown(error['input'])}"
    if words := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return f"must be one of {', '.join(map(str, words))}, not {shown(error['input'])}"
    return f"must be {TYPES.get(schema.get('type', ''), error['msg'])}, not {shown(error['input'])}"


def range_of(schema: dict[str, Any]) -> str:
    bounds = [f"{words} {schema[name]:,}" for name, words in BOUNDS.items() if name in schema]
    return " and ".join(bounds) or "finite"


def nearest(key: str, known: Iterable[str]) -> str:
    """The known key that `key` is most like, by its whole or by its last part; empty if none is."""
    known = list(known)
    if same := [name for name in known if name.rpartition(".")[2] == key]:  # the group was left out
        return same[0]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not close:
        group = key.rpartition(".")[0]
        siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == group}
        close = [siblings[leaf] for leaf in difflib.get_close_matches(key.rpartition(".")[2], siblings, n=1)]
    return close[0] if close else ""
