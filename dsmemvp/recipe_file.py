"""YAML file + `key=value` overrides -> a checked `Recipe`; every error names the key, and the line where there is one.

Paths in a recipe are relative to the folder the command is run in.
"""

import dataclasses
import difflib
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from dsmemvp.recipe import Recipe


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read `path`, apply overrides such as "training.epochs=3", check. Raises FileNotFoundError or ValueError."""
    path = Path(path)
    if path.is_dir():
        inside = path / "recipe.json"
        raise ValueError(f"recipe {path} is a folder; give a file" + f", such as {inside}" * inside.is_file())
    if not path.is_file():
        raise FileNotFoundError(f"recipe {path} does not exist")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} is not YAML: {_problem(error)}") from None
    values: dict[str, tuple[Any, str]] = {}
    if root is not None:
        _flatten(root, "", str(path), values)
    return _checked(values, overrides, str(path))


def recipe_of(values: dict[str, Any], where: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that `as_dict` made these of, and overrides; what is left out keeps its default. Raises ValueError,
    `where` in front, for keys and values of another version."""
    return _checked({key: (value, where) for key, value in _leaves(values)}, overrides, where)


def _checked(values: dict[str, tuple[Any, str]], overrides: Sequence[str], path: str) -> Recipe:
    """Of values and where each was given."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r}: write key=value, such as training.epochs=3")
        try:
            values[key.strip()] = (yaml.safe_load(text), f"override {override!r}")
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"override {override!r}: the value is not YAML: {_problem(error)}") from None
    recipe = Recipe()
    for key, (value, where) in values.items():
        _assign(recipe, key, value, where)
    try:
        recipe.check()
    except ValueError as error:
        key = str(error).partition(":")[0]
        where = values[key][1] if key in values else path
        raise ValueError(f"{where}: {error}") from None
    return recipe


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain dictionaries, for writing it down beside its results."""
    return dataclasses.asdict(recipe)


def as_yaml(recipe: Recipe) -> str:
    """All keys, as a recipe file has them."""
    return yaml.safe_dump(as_dict(recipe), sort_keys=False, allow_unicode=True)


def _flatten(node: yaml.Node, prefix: str, path: str, into: dict[str, tuple[Any, str]]) -> None:
    """Nested YAML mappings -> {"training.epochs": (value, "file, line 12")}."""
    line = f"{path}, line {node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        here: set[str] = set()
        for key_node, value_node in node.value:
            at = f"{path}, line {key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise ValueError(f"{at}: a key must be a word")
            key = f"{prefix}.{key_node.value}" if prefix else key_node.value
            if key in into or key in here:
                raise ValueError(f"{at}: {key} is given twice")
            here.add(key)
            _flatten(value_node, key, path, into)
    elif prefix:
        try:
            into[prefix] = (yaml.SafeLoader("").construct_object(node, deep=True), line)
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"{line}: {prefix}: {_problem(error)}") from None
    else:
        raise ValueError(f"{line}: a recipe is a mapping of keys to values")


def _problem(error: Exception) -> str:
    """An error of the YAML reader in one line."""
    mark = getattr(error, "problem_mark", None)
    text = " ".join(str(getattr(error, "problem", None) or error).split())
    return f"{text} (line {mark.line + 1})" if mark else text


def _assign(recipe: Recipe, key: str, value: Any, where: str) -> None:
    target: Any = recipe
    *groups, name = key.split(".")
    for depth, group in enumerate([*groups, name]):
        known = [f.name for f in dataclasses.fields(target)] if dataclasses.is_dataclass(target) else []
        if group not in known:
            raise ValueError(f"{where}: unknown key {key!r}{_nearest(key, '.'.join(groups[:depth]), known)}")
        if depth < len(groups):
            target = getattr(target, group)
    if dataclasses.is_dataclass(getattr(target, name)):
        raise ValueError(
            f"{where}: {key} is a group of keys, such as {key}.{dataclasses.fields(getattr(target, name))[0].name}"
        )
    setattr(target, name, _converted(value, get_type_hints(type(target))[name], f"{where}: {key}"))


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
    """`value` as the field's type. YAML reads 9e-3 as text, so a number in text is taken for a float."""
    origin = get_origin(wanted)
    if origin is Literal:
        if value not in get_args(wanted):
            raise ValueError(f"{where}: must be one of {', '.join(map(str, get_args(wanted)))}, not {value!r}")
        return value
    if origin is list:
        if isinstance(value, str) and get_args(wanted) == (str,):
            value = [value] if value else []
        if not isinstance(value, list):
            raise ValueError(f"{where}: must be a list, not {value!r}")
        return [_converted(v, get_args(wanted)[0], where) for v in value]
    assert isinstance(wanted, type) and not isinstance(wanted, types.GenericAlias)
    if wanted is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif type(value) is wanted:
        return value
    elif wanted is str and value is None:  # `data.test=`
        return ""
    raise ValueError(f"{where}: must be {_NAMES[wanted]}, not {value!r}")


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
