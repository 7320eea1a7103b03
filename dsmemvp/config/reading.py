"""YAML file + `key=value` overrides -> a checked `Recipe`; every error names the key, and the line where there is one.

Paths in a recipe are relative to the folder the command is run in.
"""

import dataclasses
import difflib
import types
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import yaml

from dsmemvp.config.recipe import Recipe
from dsmemvp.config.yaml_text import DEPTH, MOST, compose_yaml, plain_value, shown
from dsmemvp.errors import UserError

Values = dict[str, tuple[Any, str]]
"""Key -> its value, and where that was given."""
MOST_KEYS = 1000
MOST_TEXT = 4096
"""Characters of a text: of a path, or of a command that writes a shard."""


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read `path`, apply overrides such as "training.epochs=3", check. Raises OSError or ValueError."""
    path = Path(path)
    if path.is_dir():
        inside = path / "recipe.json"
        raise UserError(f"recipe {path} is a folder; give a file" + f", such as {inside}" * inside.is_file())
    if not path.is_file():
        raise UserError(f"recipe {path} {'is not a regular file' if path.exists() else 'does not exist'}")
    if path.stat().st_size > MOST:
        raise UserError(f"recipe {path} has {path.stat().st_size:,} bytes, at most {MOST:,} are read")
    try:
        root = compose_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"recipe {path} is not YAML: {error}") from None
    except ValueError as error:
        raise UserError(f"recipe {path} {error}") from None
    values: Values = {}
    if root is not None:
        _flatten(root, "", lambda line: f"{path}, line {line}", values)
    return _checked(values, overrides, str(path))


def recipe_of(values: dict[str, Any], where: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that `as_dict` made these of, and overrides; what is left out keeps its default. Raises UserError,
    `where` in front, for keys and values of another version."""
    return _checked({key: (value, where) for key, value in _leaves(values, where)}, overrides, where)


def check_overrides(overrides: Sequence[str]) -> None:
    """Whether each names a key and a value that it can have, for commands that read their recipe later. Raises
    ValueError."""
    _assigned(_overridden(overrides))


def _checked(values: Values, overrides: Sequence[str], path: str) -> Recipe:
    values = values | _overridden(overrides)
    recipe = _assigned(values)
    try:
        recipe.check()
    except ValueError as error:
        key = str(error).partition(":")[0]
        where = values[key][1] if key in values else path
        raise UserError(f"{where}: {error}") from None
    return recipe


def _assigned(values: Values) -> Recipe:
    recipe = Recipe()
    for key, (value, where) in values.items():
        _assign(recipe, key, value, where)
    return recipe


def _overridden(overrides: Sequence[str]) -> Values:
    values: Values = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        where = f"override {shown(override)}"
        if not equals:
            raise UserError(f"{where}: write key=value, such as training.epochs=3")
        try:
            root = compose_yaml(text)
        except ValueError as error:
            raise UserError(f"{where}: the value {error}") from None
        values |= _of_override(root, key.strip(), where)
    return values


def _of_override(root: yaml.Node | None, key: str, where: str) -> Values:
    if root is None:  # `data.test=`
        return {key: (None, where)}
    given: Values = {}
    _flatten(root, key, lambda line: where, given)
    return given


def _leaves(values: dict[str, Any], where: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if not isinstance(value, dict):
            yield f"{prefix}{name}", value
        elif prefix.count(".") < DEPTH:
            yield from _leaves(value, where, f"{prefix}{name}.")
        else:
            raise UserError(f"{where}: is nested deeper than {DEPTH} levels")


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain dictionaries, for writing it down beside its results."""
    return dataclasses.asdict(recipe)


def as_yaml(recipe: Recipe) -> str:
    """All keys, as a recipe file has them."""
    return yaml.safe_dump(as_dict(recipe), sort_keys=False, allow_unicode=True)


def _flatten(node: yaml.Node, prefix: str, place: Callable[[int], str], into: Values) -> None:
    """Nested YAML mappings -> {"training.epochs": (value, "file, line 12")}; `place` makes the latter of a line."""
    line = place(node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        here: set[str] = set()
        for key_node, value_node in node.value:
            at = place(key_node.start_mark.line + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{at}: a key must be a word")
            key = f"{prefix}.{key_node.value}" if prefix else key_node.value
            if key in into or key in here:
                raise UserError(f"{at}: {_short(key)} is given twice")
            here.add(key)
            _flatten(value_node, key, place, into)
    elif prefix:
        if len(into) == MOST_KEYS:
            raise UserError(f"{line}: {_short(prefix)} is one key more than the {MOST_KEYS} that are read")
        try:
            into[prefix] = plain_value(node), line
        except ValueError as error:
            raise UserError(f"{line}: {_short(prefix)}: {error}") from None
    else:
        raise UserError(f"{line}: a recipe is a mapping of keys to values")


def _short(key: str) -> str:
    return key if len(key) <= 80 and key.isprintable() else shown(key)


def _assign(recipe: Recipe, key: str, value: Any, where: str) -> None:
    target: Any = recipe
    *groups, name = key.split(".")
    for depth, group in enumerate([*groups, name]):
        known = [f.name for f in dataclasses.fields(target)] if dataclasses.is_dataclass(target) else []
        if group not in known:
            raise UserError(f"{where}: unknown key {shown(key)}{_nearest(key, '.'.join(groups[:depth]), known)}")
        if depth < len(groups):
            target = getattr(target, group)
    if dataclasses.is_dataclass(getattr(target, name)):
        raise UserError(
            f"{where}: {key} is a group of keys, such as {key}.{dataclasses.fields(getattr(target, name))[0].name}"
        )
    wanted = get_type_hints(type(target), include_extras=True)[name]
    setattr(target, name, _converted(value, wanted, f"{where}: {key}"))


def _nearest(key: str, group: str, siblings: list[str]) -> str:
    every = list(_all_keys(Recipe(), ""))
    close = difflib.get_close_matches(key, every, n=1, cutoff=0.6)
    if not close:
        leaf = difflib.get_close_matches(key.rpartition(".")[2], siblings, n=1)
        close = [f"{group}.{leaf[0]}" if group else leaf[0]] if leaf else []
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(siblings) or 'none'}"


def _all_keys(group: Any, prefix: str):
    for f in dataclasses.fields(group):
        value, key = getattr(group, f.name), f"{prefix}{f.name}"
        if dataclasses.is_dataclass(value):
            yield from _all_keys(value, f"{key}.")
        else:
            yield key


def _converted(value: Any, wanted: Any, where: str) -> Any:
    """`value` as the field's type, and inside its range. YAML reads 9e-3 as text, so a number in text is taken for a
    float."""
    origin = get_origin(wanted)
    if origin is Annotated:
        kind, within = get_args(wanted)
        number = _converted(value, kind, where)
        if not within.holds(number):
            raise UserError(f"{where}: must be {within}, is {shown(number)}")
        return number
    if origin is Literal:
        if value not in get_args(wanted):
            raise UserError(f"{where}: must be one of {', '.join(map(str, get_args(wanted)))}, not {shown(value)}")
        return value
    if origin is list:
        if isinstance(value, str) and get_args(wanted) == (str,):
            value = [value] if value else []
        if not isinstance(value, list):
            raise UserError(f"{where}: must be a list, not {shown(value)}")
        return [_converted(v, get_args(wanted)[0], where) for v in value]
    assert isinstance(wanted, type) and not isinstance(wanted, types.GenericAlias)
    if wanted is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    elif wanted is str and value is None:  # `data.test=`
        return ""
    elif type(value) is wanted:
        return _text(value, where) if isinstance(value, str) else value
    raise UserError(f"{where}: must be {_NAMES[wanted]}, not {shown(value)}")


def _text(value: str, where: str) -> str:
    if len(value) > MOST_TEXT or any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise UserError(
            f"{where}: must be text of at most {MOST_TEXT:,} characters without control characters, not {shown(value)}"
        )
    return value


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
