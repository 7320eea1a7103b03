"""What a recipe says of the stages of a method that trains in several: other data, another schedule, another start.

stages:
  text: {data: {train: data/captions}, training: {epochs: 5, global_batch: 384}}
  finetune: {start_from: runs/pretrained, training: {learning_rate: 1e-5}}
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dsmemvp.config.conversion import Values, converted, groups_of, nearest
from dsmemvp.config.fields import MOST_TEXT
from dsmemvp.config.recipe import START, Recipe
from dsmemvp.config.yaml_text import shown
from dsmemvp.errors import UserError

OF_STAGE: dict[str, tuple[str, ...]] = {
    "data": (
        *("train", "passes", "validation", "captions", "max_length", "on_bad_sample", "most_bad_in_a_row"),
        *("block_shards", "last_batch"),
    ),
    "training": (
        *("epochs", "warmup_epochs", "learning_rate", "min_learning_rate", "betas", "weight_decay"),
        *("schedule", "step_epochs", "step_factor", "scaled_tensors", "scaled_rate"),
        *("gradient_clipping", "global_batch", "micro_batch", "micro_tokens", "recompute", "activation_budget"),
        *("deepspeed", "checkpoint_epochs", "checkpoint_steps"),
    ),
}
"""The keys that may be other in a stage, by their groups."""
KEYS = [START, *(f"{group}.{name}" for group, names in OF_STAGE.items() for name in names)]


def read_stages(values: Values, recipe: Recipe) -> dict[str, Any]:
    """`values` of a whole recipe -> what `Recipe.stages` holds; `recipe` has all else. Raises UserError."""
    given: dict[str, Values] = {}
    for key, (value, where) in values.items():
        group, _, rest = key.partition(".")
        if group != "stages" or (key == "stages" and value is None):
            continue
        name, _, inside = rest.partition(".")
        if not name or not inside:
            named = f"stages.{name}" if name else "stages"
            raise UserError(f"{where}: {named} is a group of keys, such as stages.{name or 'NAME'}.training.epochs")
        if inside not in KEYS:
            raise UserError(f"{where}: unknown key {shown(key)}{_hint(name, inside)}")
        given.setdefault(name, {})[inside] = value, where
    return {name: _read_stage(name, own, values, recipe) for name, own in given.items()}


def _hint(name: str, inside: str) -> str:
    close = nearest(inside, KEYS)
    return f"; did you mean 'stages.{name}.{close}'?" if close else f"; known of a stage: {', '.join(KEYS)}"


def _read_stage(name: str, own: Values, values: Values, recipe: Recipe) -> dict[str, Any]:
    """Checked as the whole recipe would be with these values. Raises UserError."""
    found: dict[str, Any] = {}
    if START in own:
        value, where = own[START]
        if not isinstance(value, str) or not value or len(value) > MOST_TEXT:
            raise UserError(f"{where}: stages.{name}.{START}: must be the path of a run or a checkpoint")
        found[START] = value
    for group, kind in groups_of(Recipe).items():
        given = {key.partition(".")[2]: pair for key, pair in own.items() if key.startswith(f"{group}.")}
        if not given:
            continue
        prefix = f"stages.{name}.{group}."
        of_run = {key.removeprefix(f"{group}."): pair for key, pair in values.items() if key.startswith(f"{group}.")}
        whole = {f"{prefix}{key}": pair for key, pair in (of_run | given).items()}
        made = dataclasses.asdict(converted(kind, prefix, whole))
        found[group] = {key: made[key] for key in given}
    return found


def check_stages(recipe: Recipe) -> None:
    """The names, and the rules between fields in each stage. Raises UserError."""
    for name in recipe.stages:
        if name not in (known := recipe.method.known_stages()):
            raise UserError(f"stages.{name}: method {recipe.method.name} has no such stage; {_one_of(name, known)}")
        try:
            stage_recipe(recipe, name).check()
        except ValueError as error:
            raise UserError(f"stages.{name}: {error}") from None


def stage_recipe(recipe: Recipe, name: str) -> Recipe:
    """The recipe as it holds in a stage."""
    own = recipe.stages.get(name, {})
    changed = {group: dataclasses.replace(getattr(recipe, group), **own[group]) for group in OF_STAGE if group in own}
    return dataclasses.replace(recipe, **changed)


def check_stage(recipe: Recipe, name: str) -> None:
    """Of what `--stage` names; nothing is the whole run. Raises UserError."""
    if name and name not in (names := recipe.method.stage_names()):
        raise UserError(f"--stage: the method has no stage {name!r}; {_one_of(name, names)}")


def _one_of(name: str, names: Sequence[str]) -> str:
    close = nearest(name, list(names))
    return f"did you mean {close!r}?" if close else f"its stages are {', '.join(names)}"
