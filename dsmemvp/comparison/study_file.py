"""A study file's keys, read from YAML; study.py makes contenders of them, and says what they mean."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import pydantic.dataclasses
import yaml
from pydantic import Field

from dsmemvp.config.conversion import Values, converted, nearest
from dsmemvp.config.fields import CONFIG, FROM_TEXT, Steps, Text
from dsmemvp.config.reading import flatten
from dsmemvp.config.yaml_text import MOST, compose_yaml, plain_value, shown
from dsmemvp.errors import UserError


@pydantic.dataclasses.dataclass(config=CONFIG)
class Budget:
    """Of every training of a study, trials included; the one of these that is not 0, or the recipe's epochs."""

    epochs: Annotated[float, Field(ge=0, le=10**5), FROM_TEXT] = 0.0
    steps: Steps = 0
    samples: Annotated[int, Field(ge=0, le=10**15)] = 0
    seconds: Annotated[float, Field(ge=0, le=10**7), FROM_TEXT] = 0.0

    @property
    def is_given(self) -> bool:
        return any(vars(self).values())


@pydantic.dataclasses.dataclass(config=CONFIG)
class Settings:
    """The keys of a study file, beside `contenders` and `tune`."""

    name: Text = ""
    """Of the study."""
    recipe: Text = ""
    """The recipe that all contenders change."""
    seeds: list[Annotated[int, Field(ge=0, le=2**31)]] = field(default_factory=lambda: [0, 1, 2])
    """A training with each; fixed before any result is seen."""
    tune_seed: Annotated[int, Field(ge=0, le=2**31)] = 1000
    """Of the trials; none of `seeds`, so that no run was chosen by its own luck."""
    blind: bool = True
    """Also evaluate every run without its images."""
    leaks: Literal["refuse", "report"] = "refuse"
    """What test samples that stand in the training, validation or search data do: end the study, or be reported."""
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True)
class StudyFile:
    settings: Settings
    common: Values
    """Keys of the recipe that are changed for all contenders."""
    contenders: dict[str, Values]
    """Of each those that it changes."""
    tune: Values


def is_study(path: Path) -> bool:
    """Whether a YAML file has contenders, or cannot be read, of which `read_study_file` says why."""
    try:
        root = compose_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return isinstance(root, yaml.MappingNode) and any(key.value == "contenders" for key, _ in root.value)


def read_study_file(path: Path) -> StudyFile:
    """Raises UserError with the line."""
    if not path.is_file() or path.stat().st_size > MOST:
        raise UserError(f"study {path} does not exist, is not a file, or has more than {MOST:,} bytes")
    try:
        root = compose_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"study {path}: {error}") from None
    values: Values = {}
    contenders: dict[str, Values] = {}
    common: Values = {}
    tune: Values = {}
    known = [f.name for f in fields(Settings) if f.name != "budget"]
    for key, at, node in _pairs(path, root, "a study"):
        if key == "contenders":
            for name, where, body in _pairs(path, node, "contenders"):
                if name in contenders:
                    raise UserError(f"{where}: contender {shown(name)} is given twice")
                if not name.replace("-", "").replace("_", "").isalnum():
                    raise UserError(
                        f"{where}: {shown(name)}: a name has letters, digits, - and _, as files are called so"
                    )
                contenders[name] = _flat(path, body)
        elif key == "tune":
            tune = _flat(path, node)
        elif key == "set":
            common = _flat(path, node)
        elif key == "budget":
            values |= _budget(path, node)
        elif key not in known:
            close = nearest(key, [*known, "budget", "contenders", "set", "tune"])
            raise UserError(f"{at}: unknown key {shown(key)}" + f"; did you mean {close!r}?" * bool(close))
        else:
            values[key] = (plain_value(node), at)
    budget = converted(Budget, "budget.", {key: given for key, given in values.items() if key.startswith("budget.")})
    if sum(map(bool, vars(budget).values())) > 1:
        raise UserError(f"{path}: budget: give one of {', '.join(vars(budget))}")
    return StudyFile(converted(Settings, "", values, budget=budget), common, contenders, tune)


def _budget(path: Path, node: yaml.Node) -> Values:
    known = [f.name for f in fields(Budget)]
    for key, at, _ in _pairs(path, node, "budget"):
        if key not in known:
            raise UserError(f"{at}: unknown key {shown(f'budget.{key}')}; known of a budget: {', '.join(known)}")
    return {f"budget.{key}": given for key, given in _flat(path, node).items()}


def _pairs(path: Path, node: yaml.Node | None, what: str) -> Iterator[tuple[str, str, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}: {what} is a mapping of names to values")
    for key, value in node.value:
        yield str(key.value), f"{path}, line {key.start_mark.line + 1}", value


def _flat(path: Path, node: yaml.Node) -> Values:
    values: Values = {}
    if isinstance(node, yaml.MappingNode):
        flatten(node, "", lambda line: f"{path}, line {line}", values)
    elif plain_value(node) is not None:
        raise UserError(f"{path}, line {node.start_mark.line + 1}: give a mapping of a recipe's keys to values")
    return values
