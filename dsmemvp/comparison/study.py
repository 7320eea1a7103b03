"""A study file -> what is compared and every training that it takes.

    name: easy_vqa
    recipe: recipes/easy_vqa.yaml          # base, data and prompt of all
    set: {data.validation: data/val}       # keys of the recipe that are other for all
    contenders:                            # a name -> keys of the recipe that differ
      memvp: {}
      dvp: {method: {name: dvp}}
      found: {method: {name: dvp, layer: search}}    # the layer that a search on data.search finds
    tune: {training.learning_rate: [1.0e-3, 3.0e-3, 1.0e-2]}
    budget: {steps: 200}                   # of every training; without, the recipe's epochs
    seeds: [0, 1, 2]

Every contender is tuned with the same number of trials, each a whole training with `tune_seed` that is judged by the
loss on data.validation; then it is trained with each of `seeds` and evaluated on data.test, with images and blind.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dsmemvp.comparison.study_file import Settings, read_study_file
from dsmemvp.config.conversion import Values
from dsmemvp.config.hub import pinned
from dsmemvp.config.methods import method_module
from dsmemvp.config.reading import as_dict, leaves, read_recipe, recipe_of
from dsmemvp.config.recipe import Recipe
from dsmemvp.config.yaml_text import shown
from dsmemvp.errors import UserError
from dsmemvp.training.search_check import check_search

OWN: tuple[str, ...] = (
    "training.learning_rate",
    "training.min_learning_rate",
    "training.weight_decay",
    "training.micro_batch",
)
OWN += ("training.micro_tokens", "training.recompute", "training.deepspeed")
OWN += ("vision.adapter_dim", "vision.adapter_scale", "vision.adapter_dropout", "vision.cache_features")
"""Keys in which contenders may differ beside `method`: all others are the study's, or it would compare more than the
method."""
MOST_TRIALS = 100
SEARCH = "search"
"""In the place of the value of a method's key that a search is to find."""


@dataclass(frozen=True)
class Contender:
    name: str
    recipe: Recipe
    trials: tuple[tuple[str, ...], ...]
    """Overrides of every trial; none if nothing is tuned or it trains nothing."""
    searched: str = ""
    """The key that a search finds the value of before the first trial, such as method.layer, which is 0 in `recipe`."""

    @property
    def tuned(self) -> set[str]:
        """The keys that its trials set."""
        return {override.partition("=")[0] for trial in self.trials for override in trial}

    @property
    def trains(self) -> bool:
        return method_module(self.recipe.method.name).Method.trainable


@dataclass(frozen=True)
class Study:
    settings: Settings
    contenders: tuple[Contender, ...]
    path: Path

    @property
    def name(self) -> str:
        return self.settings.name or self.path.stem

    def as_dict(self) -> dict[str, Any]:
        """All that results depend on, to be written down before there are any."""
        rows = {
            c.name: {"recipe": as_dict(c.recipe), "trials": list(map(list, c.trials)), "searched": c.searched}
            for c in self.contenders
        }
        return {"name": self.name, **asdict(self.settings), "contenders": rows}


@contextmanager
def errors_of(contender: str) -> Iterator[None]:
    """A UserError about a contender's settings begins with its name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"contender {contender}: {error}") from None


def read_study(path: Path, out: Path, overrides: Sequence[str] = ()) -> Study:
    """Raises OSError or UserError. `overrides` are of all contenders' recipes."""
    found = read_study_file(path)
    settings, contenders = found.settings, found.contenders
    if not settings.recipe:
        raise UserError(f"{path}: recipe: name the recipe that all contenders change")
    if len(contenders) < 2:
        raise UserError(f"{path}: contenders: name at least two, each with the keys in which it differs")
    if len(set(settings.seeds)) < len(settings.seeds) or not settings.seeds or settings.tune_seed in settings.seeds:
        raise UserError(f"{path}: seeds: need different numbers, none of them tune_seed = {settings.tune_seed}")
    made = []
    for name, own in contenders.items():
        searched, changes = _searched(found.common | own)
        contender = Contender(name, _recipe(name, settings.recipe, changes, out, overrides), (), searched)
        made.append(_to_search(path, contender) if searched else contender)
    _check_same(path, made)
    tuned = [replace(c, trials=_trials(path, c, found.tune, contenders[c.name])) if c.trains else c for c in made]
    if any(c.trials for c in tuned) and not made[0].recipe.data.validation:
        raise UserError(f"{path}: tune: the recipe needs data.validation, by whose loss a trial is judged")
    for contender in tuned:
        _check_runs(path, contender, settings)
    return Study(settings, tuple(tuned), path)


def pinned_study(study: Study) -> Study:
    """The same, with the commit in every name on the hub. Raises UserError."""
    return replace(study, contenders=tuple(replace(c, recipe=pinned(c.recipe)) for c in study.contenders))


def study_of_recipes(paths: Sequence[Path], seeds: int, out: Path, overrides: Sequence[str] = ()) -> Study:
    """Recipes as they are, without tuning: a contender each, named as its file."""
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        raise UserError("recipes: two have the same file name, by which contenders are told apart; rename one")
    recipes = [read_recipe(path, [*overrides, f"output={json.dumps(str(out / 'runs'))}"]) for path in paths]
    made = tuple(Contender(name, recipe, ()) for name, recipe in zip(names, recipes, strict=True))
    _check_same(paths[0], made)
    return Study(Settings("-".join(names), str(paths[0]), list(range(seeds))), made, paths[0])


def _recipe(name: str, base: str, own: Values, out: Path, overrides: Sequence[str]) -> Recipe:
    changes = [_override(key, value) for key, (value, _) in own.items() if key != "recipe" and not _is_tuned(key)]
    file, where = own.get("recipe", (base, ""))
    if not isinstance(file, str):
        raise UserError(f"{where}: recipe: give the path of a recipe, not {shown(str(file))}")
    with errors_of(name):
        return read_recipe(file, [*changes, *overrides, f"output={json.dumps(str(out / 'runs'))}"])


def _searched(changes: Values) -> tuple[str, Values]:
    """The key of a method whose value is SEARCH, and the other changes."""
    key = next((key for key, (value, _) in changes.items() if key.startswith("method.") and value == SEARCH), "")
    return key, {other: given for other, given in changes.items() if other != key}


def _to_search(path: Path, contender: Contender) -> Contender:
    """With 0, which every range has, until the search has found a value. Raises UserError for a key that no search
    finds, or without data to score on."""
    with errors_of(contender.name):
        check_search(contender.recipe)
    known = f"method.{method_module(contender.recipe.method.name).Method.searched}"
    if contender.searched != known:
        raise UserError(
            f"{path}, contender {contender.name}: {contender.searched}: a search finds {known}, and nothing else"
        )
    return replace(contender, recipe=recipe_of(as_dict(contender.recipe), str(path), [f"{known}=0"]))


def _is_tuned(key: str) -> bool:
    return key.startswith("tune.")


def _override(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value)}"


def _trials(path: Path, contender: Contender, tune: Values, own: Values) -> tuple[tuple[str, ...], ...]:
    """The grid of what is tuned; a contender's `tune.KEY` stands in place of the study's, with as many values."""
    grid: list[list[str]] = []
    for key, (common, where) in tune.items():
        values, given = own.get(f"tune.{key}", (common, where))
        if not common or not isinstance(common, list):
            raise UserError(f"{where}: tune: {key} is a list of values, at least one")
        if not isinstance(values, list) or len(values) != len(common):
            raise UserError(
                f"{given}: contender {contender.name}: tune.{key}: give as many values as the study, {len(common)}"
            )
        if key not in OWN and (key == "method.name" or not key.startswith("method.")):
            raise UserError(f"{where}: tune: {key} is not a contender's own; tune a method's keys or {', '.join(OWN)}")
        grid.append([_override(key, value) for value in values])
    for key in own:
        if _is_tuned(key) and key.removeprefix("tune.") not in tune:
            raise UserError(f"{own[key][1]}: {key}: the study itself does not tune it")
    trials = tuple(itertools.product(*grid)) if grid else ()
    if len(trials) > MOST_TRIALS:
        raise UserError(f"{path}: tune: makes {len(trials)} trials for every contender, at most {MOST_TRIALS}")
    return trials


def _check_runs(path: Path, contender: Contender, settings: Settings) -> None:
    """Raises UserError for a trial's values, or a run's name, that no recipe can have: before the hours of the first
    one."""
    values, longest = as_dict(contender.recipe), max(settings.seeds)
    for trial in contender.trials or ((),):
        recipe_of(values, f"{path}, contender {contender.name}", [*trial, f"name={contender.name}-seed-{longest}"])


def _check_same(path: Path, contenders: Sequence[Contender]) -> None:
    """Raises UserError if contenders differ in more than the method and its own keys."""
    first, *others = contenders
    if first.recipe.training.stop_at_step:
        raise UserError(f"{path}: training.stop_at_step: whole trainings are compared; leave it out, a study resumes")
    wanted = dict(leaves(as_dict(first.recipe)))
    for other in others:
        found = dict(leaves(as_dict(other.recipe)))
        for key in sorted(wanted.keys() | found.keys()):
            if key.startswith(("method.", "stages.")) or key in (*OWN, "name"):  # stages: guards.py
                continue
            if wanted.get(key) != found.get(key):
                raise UserError(
                    f"{path}: contenders {first.name} and {other.name} differ in {key}: {wanted.get(key)!r} and"
                    f" {found.get(key)!r}; a study compares methods with all else equal"
                )
