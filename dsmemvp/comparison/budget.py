"""A study's budget -> the length of every contender's training.

Steps and samples are the same number for all, whatever the data's length: training.epochs becomes a part of an epoch,
or several, that is exactly so many steps. Seconds are those of one machine: as many steps as a contender makes in them
by its probe. The recipe's warm-up and `step_epochs` keep their share of the training. Of a method that trains in
several stages the budget is that of the last one, which learns what all learn; what the others take is reported.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dsmemvp.backbones.weights import Base
from dsmemvp.comparison.study import Contender, Study, errors_of
from dsmemvp.comparison.study_file import Budget
from dsmemvp.config.reading import as_dict, recipe_of
from dsmemvp.config.recipe import Recipe
from dsmemvp.counting import counted
from dsmemvp.errors import UserError
from dsmemvp.stages import stages_of
from dsmemvp.training.stages import Span, spans_of


def with_budget(study: Study, seconds_per_step: Mapping[str, float] | None = None) -> Study:
    """Reads the manifests of the data. `seconds_per_step` by the contender's name; without, a budget in seconds is left
    as it is. Raises UserError or OSError."""
    budget = study.settings.budget
    if not budget.is_given or (budget.seconds and seconds_per_step is None):
        return study
    made = []
    for contender in study.contenders:
        seconds = (seconds_per_step or {}).get(contender.name, 0.0)
        with errors_of(contender.name):
            made.append(_within(contender, budget, seconds) if contender.trains else contender)
    return replace(study, contenders=tuple(made))


def spans(recipe: Recipe) -> list[Span]:
    """The stages of a training."""
    base = Base(recipe)
    return spans_of(stages_of(recipe, base.configs), recipe, base)


def _within(contender: Contender, budget: Budget, seconds_per_step: float) -> Contender:
    recipe, batch = contender.recipe, contender.recipe.training.global_batch
    if budget.samples % batch:
        raise UserError(
            f"budget.samples: {budget.samples} are no whole number of batches of"
            f" {counted(batch, 'sample')} (training.global_batch); take {max(budget.samples // batch, 1) * batch}"
        )
    steps = budget.steps or budget.samples // batch
    if budget.seconds:
        steps = max(1, int(budget.seconds / seconds_per_step))
    *before, last = spans(recipe)
    for span in before:
        if "epochs" not in recipe.stages.get(span.name, {}).get("training", {}):
            raise UserError(
                f"give stages.{span.name}.training.epochs; the study's budget is that of the last stage, {last.name}"
            )
    return replace(contender, recipe=stretched(recipe, budget.epochs or steps / last.per_epoch))


def stretched(recipe: Recipe, epochs: float) -> Recipe:
    """The recipe with a training, or last stage, of another length. Raises UserError for one that no recipe can
    have."""
    training = recipe.training
    share = epochs / training.epochs
    changed: dict[str, Any] = {
        "training.epochs": epochs,
        "training.warmup_epochs": min(training.warmup_epochs * share, epochs),
        "training.step_epochs": [end * share for end in training.step_epochs],
    }
    for stage in recipe.method.stage_names()[:-1]:
        given = recipe.stages.get(stage, {}).get("training", {})
        for key in ("warmup_epochs", "step_epochs"):  # what they have from the recipe stays as it is
            if key not in given:
                changed[f"stages.{stage}.training.{key}"] = getattr(training, key)
    return recipe_of(as_dict(recipe), "budget", [f"{key}={json.dumps(value)}" for key, value in changed.items()])
