"""A run's stages, one after another. Steps are counted through all of them; order of samples, learning rate and epochs
begin anew in each."""

from collections.abc import Sequence
from dataclasses import dataclass

from dsmemvp.config.recipe import Recipe
from dsmemvp.data.datasets import TrainingData, data_of
from dsmemvp.prompts.interface import Stage


@dataclass(frozen=True)
class Span:
    """A stage with its place among the run's steps."""

    stage: Stage
    data: TrainingData
    first: int
    """Steps of the run before it."""
    epochs: float
    epochs_before: int
    """Whole epochs of the stages before it."""

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

    def ends_epochs(self, step: int, epochs: int) -> bool:
        """Whether a multiple of so many epochs of the stage ends with this step."""
        return (step - self.first) % (self.per_epoch * epochs) == 0


def spans_of(stages: Sequence[Stage], recipe: Recipe, data: TrainingData) -> list[Span]:
    """`data` is all that the recipe names. Raises UserError for a stage whose data the recipe does not name."""
    spans: list[Span] = []
    first = before = 0
    for stage in stages:
        own = data_of(data, recipe, stage.data)
        epochs = recipe.training.epochs if stage.epochs is None else stage.epochs
        spans.append(Span(stage, own, first, epochs, before))
        first, before = spans[-1].last, before + int(epochs)
    return spans


def span_after(spans: Sequence[Span], step: int) -> Span:
    """The stage of the step that follows `step` steps; at the end of the run its last one."""
    return next((span for span in spans if step < span.last), spans[-1])


def span_before(spans: Sequence[Span], step: int) -> Span:
    """The stage of the last of `step` steps; at the beginning the first one."""
    return next(span for span in reversed(spans) if step > span.first or span.first == 0)
