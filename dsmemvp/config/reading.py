"""YAML file + `key=value` overrides -> a checked `Recipe`; every error names the key, and the line if there is one.

Paths in a recipe are relative to the folder the command is run in.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dsmemvp.config.conversion import Values, converted, groups_of, keys_of, nearest
from dsmemvp.config.methods import DEFAULT, MethodSettings, method_names, setting_names, settings_class
from dsmemvp.config.recipe import Recipe
from dsmemvp.config.stages import check_stages, read_stages
from dsmemvp.config.yaml_text import DEPTH, MOST, compose_yaml, plain_value, shown
from dsmemvp.errors import UserError

MOST_KEYS = 1000


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read `path`, apply overrides such as "training.epochs=3", check. A .json file is a recipe that a run has stored.
    Raises OSError or UserError."""
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
        flatten(root, "", lambda line: f"{path}, line {line}", values)
    return _checked(values, overrides, str(path), stored=path.suffix == ".json")


def recipe_of(values: dict[str, Any], where: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that `as_dict` made these of, and overrides; what is left out keeps its default. Raises UserError,
    `where` in front, for keys and values of another version."""
    return _checked({key: (value, where) for key, value in _leaves(values, where)}, overrides, where, stored=True)


def check_overrides(overrides: Sequence[str]) -> None:
    """Whether each names a key and a value that it can have, for commands that read their recipe later; those of a
    method are looked at then. Raises UserError."""
    _groups(_overridden(overrides))


def _checked(given: Values, overrides: Sequence[str], path: str, stored: bool) -> Recipe:
    overridden = _overridden(overrides)
    values = given | overridden
    recipe = _groups(values)  # all else first: a method's file imports torch
    recipe.method = _method(given, overridden, stored)
    try:
        recipe.check()
        check_stages(recipe)
    except ValueError as error:
        key = str(error).partition(":")[0]
        where = values[key][1] if key in values else path
        raise UserError(f"{where}: {error}") from None
    return recipe


def _groups(values: Values) -> Recipe:
    """All of a recipe but its method, of which there is a stand-in."""
    groups = groups_of(Recipe)
    known = [key for key in keys_of(Recipe) if key not in ("method", "stages")]
    of_stages = {key: given for key, given in values.items() if key.partition(".")[0] == "stages"}
    values = {k: given for k, given in values.items() if not k.startswith("method.") and k not in of_stages}
    for key, (_, where) in values.items():
        if key == "method":
            raise UserError(f"{where}: method is a group of keys, such as method.name")
        if key in groups:
            raise UserError(f"{where}: {key} is a group of keys, such as {keys_of(groups[key], f'{key}.')[0]}")
        if key not in known:
            raise UserError(f"{where}: unknown key {shown(key)}{_hint(key, known)}")
    made: dict[str, Any] = {name: converted(kind, f"{name}.", values) for name, kind in groups.items()}
    recipe = converted(Recipe, "", values, **made, method=MethodSettings())
    recipe.stages = read_stages(values | of_stages, recipe)
    return recipe


def _hint(key: str, known: list[str]) -> str:
    close = nearest(key, known) or nearest(key, [f"method.{name}" for name in setting_names(DEFAULT)])
    group = key.partition(".")[0]
    siblings = [name.rpartition(".")[2] for name in known if name.startswith(f"{group}.")]
    return f"; did you mean {close!r}?" if close else f"; known here: {', '.join(siblings) or 'none'}"


def _method(given: Values, overridden: Values, stored: bool) -> Any:
    """The settings of the chosen method, and no others. Raises UserError.

    Left out of what a file holds are settings that its own method has and the one that an override has chosen instead
    has not. Left out of a stored recipe are those of all other methods: older versions stored one group of keys for all
    methods."""
    values = given | overridden
    named, where = values.get("method.name", (DEFAULT, ""))
    of_file = given.get("method.name", (DEFAULT, ""))[0]
    for name, place in ((of_file, given.get("method.name", ("", ""))[1]), (named, where)):
        if name not in method_names():
            raise UserError(f"{place}: method.name: must be one of {', '.join(method_names())}, not {shown(name)}")
    own = setting_names(named)
    others = [other for other in (method_names() if stored else [of_file]) if other != named]
    kept: Values = {}
    for key, value in values.items():
        group, _, name = key.partition(".")
        if group != "method":
            continue
        if name not in own:
            if key not in overridden and any(name in setting_names(other) for other in others):
                continue
            raise UserError(f"{value[1]}: unknown key {shown(key)}{_hint_of_method(key, named)}")
        kept[key] = value
    return converted(settings_class(named), "method.", kept)


def _hint_of_method(key: str, chosen: str) -> str:
    name = key.partition(".")[2]
    owners = [other for other in method_names() if other != chosen and name in setting_names(other)]
    if owners:
        return f": it belongs to {' and '.join(owners)}, method.name is {chosen}"
    close = difflib.get_close_matches(name, setting_names(chosen), n=1)
    return (
        f"; did you mean 'method.{close[0]}'?" if close else f"; known of {chosen}: {', '.join(setting_names(chosen))}"
    )


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
    flatten(root, key, lambda line: where, given)
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
    """The recipe as plain dictionaries, for writing it down beside its results; without `stages` if there are none."""
    whole = dataclasses.asdict(recipe)
    if not recipe.stages:
        del whole["stages"]
    return whole


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Of what `as_dict` gives, every setting by its whole key, such as "training.epochs"."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def as_yaml(recipe: Recipe) -> str:
    """All keys, as a recipe file has them."""
    return yaml.safe_dump(as_dict(recipe), sort_keys=False, allow_unicode=True)


def flatten(node: yaml.Node, prefix: str, place: Callable[[int], str], into: Values) -> None:
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
            flatten(value_node, key, place, into)
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
