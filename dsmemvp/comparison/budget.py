"""A study's budget -> the length of every contender's training.

Steps and samples are the same number for all, whatever the data's length: training.epochs becomes a part of an epoch,
or several, that is exactly so many steps. The recipe's warm-up and `step_epochs` keep their share of the training.
"""

import json
from dataclasses import replace

from dsmemvp.comparison.study import Budget, Contender, Study
from dsmemvp.config.reading import as_dict, recipe_of
from dsmemvp.config.recipe import Recipe
from dsmemvp.counting import counted
from dsmemvp.data.datasets import open_training_data
from dsmemvp.errors import UserError


def with_budget(study: Study) -> Study:
    """Reads the manifests of the data. Raises UserError or OSError."""
    budget = study.settings.budget
    if not budget.is_given:
        return study
    return replace(study, contenders=tuple(_within(contender, budget) for contender in study.contenders))


def steps_of(recipe: Recipe) -> int:
    """Of a training."""
    return max(1, round(recipe.training.epochs * open_training_data(recipe).order.steps))


def _within(contender: Contender, budget: Budget) -> Contender:
    recipe, batch = contender.recipe, contender.recipe.training.global_batch
    if budget.samples % batch:
        raise UserError(
            f"budget.samples: {budget.samples} are no whole number of batches of"
            f" {counted(batch, 'sample')} (training.global_batch); take {max(budget.samples // batch, 1) * batch}"
        )
    steps = budget.steps or budget.samples // batch
    epochs = budget.epochs or steps / open_training_data(recipe).order.steps
    return replace(contender, recipe=stretched(recipe, epochs))


def stretched(recipe: Recipe, epochs: float) -> Recipe:
    """The recipe with a training of another length. Raises UserError for one that no recipe can have."""
    training = recipe.training
    share = epochs / training.epochs
    changed = {
        "epochs": epochs,
        "warmup_epochs": min(training.warmup_epochs * share, epochs),
        "step_epochs": [end * share for end in training.step_epochs],
    }
    return recipe_of(
        as_dict(recipe), "budget", [f"training.{key}={json.dumps(value)}" for key, value in changed.items()]
    )
