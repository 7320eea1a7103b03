"""A run's stages, one after another. Steps are counted through all of them; order of samples, learning rate and epochs
begin anew in each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsmemvp.backbones.weights import Base
from dsmemvp.config.recipe import START, Recipe
from dsmemvp.config.stages import stage_recipe
from dsmemvp.data.datasets import TrainingData, data_of, open_training_data, open_validation_data
from dsmemvp.data.manifest import Manifest
from dsmemvp.inputs import Inputs, open_inputs, stage_folders
from dsmemvp.prompts.interface import Stage

PARTS = ("deepspeed", "recompute", "activation_budget")
"""Keys of `training` that a model is built with."""


@dataclass(frozen=True)
class Span:
    """A stage with its place among the run's steps."""

    stage: Stage
    recipe: Recipe
    """As it holds in the stage."""
    inputs: Inputs
    data: TrainingData
    validation: Manifest | None
    """Where the language model's loss is measured; None in a stage without one, too."""
    first: int
    """Steps of the run before it."""
    epochs: float
    epochs_before: int
    """Whole epochs of the stages before it."""
    teacher: bool = False
    """Whether it learns from a module of an earlier stage."""
    start_from: str = ""
    """A run or a checkpoint instead of the stage before."""

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return self.data.order.steps

    @property
    def last(self) -> int:
        """Steps of the run at its end."""
        return self.first + max(1, round(self.epochs * self.per_epoch))

    def finished_epochs(self, step: int) -> int:
        """Of the run, after `step` steps, of which the last is this stage's."""
        return self.epochs_before + (step - self.first) // self.per_epoch

    def is_judged(self, step: int) -> bool:
        """Whether `checkpoint_epochs` or the stage ends with this step: then it is validated, if it has data for it."""
        every = self.per_epoch * self.recipe.training.checkpoint_epochs
        return step == self.last or (step - self.first) % every == 0

    def shares_model(self, before: "Span") -> bool:
        """Whether it goes on with the model of the stage before."""
        alike = all(getattr(self.recipe.training, key) == getattr(before.recipe.training, key) for key in PARTS)
        return alike and self.stage.parts == before.stage.parts and not (self.teacher or before.teacher)


def spans_of(stages: Sequence[Stage], recipe: Recipe, base: Base) -> list[Span]:
    """Opens the data of every stage. Raises UserError or OSError, also for a stage whose data the recipe does not
    name."""
    assert tuple(stage.name for stage in stages) == recipe.method.stage_names()
    spans: list[Span] = []
    first = before = 0
    for stage in stages:
        own, given = stage_recipe(recipe, stage.name), recipe.stages.get(stage.name, {})
        known = next((span for span in spans if span.recipe == own), None)
        whole = known.data if known and not known.stage.data else open_training_data(own)
        validation = open_validation_data(own) if stage.decoder else None
        inputs = open_inputs(own, base, stage.name)
        epochs = given.get("training", {}).get("epochs", stage.epochs)
        span = Span(
            stage,
            own,
            inputs,
            data_of(whole, own, stage_folders(own, stage)),
            validation,
            first,
            own.training.epochs if epochs is None else epochs,
            before,
            inputs.method.teacher(stage) is not None,
            given.get(START, ""),
        )
        spans.append(span)
        first, before = span.last, before + int(span.epochs)
    return spans


def identity_of(spans: Sequence[Span]) -> dict[str, Any]:
    """What the order of a run's samples follows from, by the recipe's keys."""
    first = spans[0]
    if any(span.recipe != first.recipe for span in spans):
        own = {f"stages.{span.name}.{k}": v for span in spans for k, v in span.data.identity.items() if k != "seed"}
        staged = [[span.name, span.epochs, list(span.stage.data)] for span in spans]
        return {"seed": first.recipe.seed, **own, "method.stages": staged}
    if len(spans) == 1 and first.stage.epochs is None and not first.stage.data:
        return first.data.identity
    staged = [[span.name, span.stage.epochs, list(span.stage.data)] for span in spans]
    return first.data.identity | {"method.stages": staged}


def span_after(spans: Sequence[Span], step: int) -> Span:
    """The stage of the step that follows `step` steps; at the end of the run its last one."""
    return next((span for span in spans if step < span.last), spans[-1])


def span_before(spans: Sequence[Span], step: int) -> Span:
    """The stage of the last of `step` steps; at the beginning the first one."""
    return next(span for span in reversed(spans) if step > span.first or span.first == 0)
