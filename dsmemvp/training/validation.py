"""The loss and the score on data.validation, which tell which checkpoints are best."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dsmemvp.checkpoints.checkpoint import State
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.collator import Collator
from dsmemvp.data.loader import Share, evaluation_steps
from dsmemvp.data.manifest import Manifest
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.errors import UserError
from dsmemvp.model import VisualLanguageModel, loss_sum
from dsmemvp.training.engine import Trainer

Poll = Callable[[], object]
"""Called between two batches; may raise."""
Evaluator = Callable[
    [Recipe, Ranks, Manifest, Collator, VisualLanguageModel, Callable[..., Any], Poll, int], dict[str, float]
]
"""(recipe, ranks, data, collator for training, model, its forward, poll, step) -> where the recipe wants them scores
by their names, the main one first; the same on all ranks. The later room `evaluation` has it, so the run is given
it."""


def epochs_are_over(step: int, recipe: Recipe, per_epoch: int) -> bool:
    """Whether an epoch that a checkpoint is due after ends with this step."""
    return step % (per_epoch * recipe.training.checkpoint_epochs) == 0


def owes_validation(state: State, recipe: Recipe, per_epoch: int) -> bool:
    """Whether the run was asked to end while it validated."""
    owed = state.validation_loss is None or (recipe.training.best_by == "score" and state.validation_score is None)
    return bool(state.step) and epochs_are_over(state.step, recipe, per_epoch) and owed


def validation_loss(
    trainer: Trainer, ranks: Ranks, manifest: Manifest, collator: Collator, batch: int, workers: int, poll: Poll
) -> float:
    """Per supervised token, over all samples, without dropout; `batch` samples per rank and forward. Raises UserError
    where no sample can be used."""
    share = Share(ranks.rank, ranks.world, batch)
    total, tokens = 0.0, 0
    with _evaluating(trainer):
        for (part,) in ranks.in_step(evaluation_steps(manifest, collator, share, workers)):
            poll()
            part = part.to(ranks.device)
            total += loss_sum(trainer.engine(part), part.targets).item()
            tokens += part.targets.numel()
    loss, supervised = ranks.sums(total, tokens)
    if not supervised:
        raise UserError(f"data.validation: no sample of {manifest.location} could be used")
    return loss / supervised


def examine(
    trainer: Trainer,
    recipe: Recipe,
    ranks: Ranks,
    manifest: Manifest,
    collator: Collator,
    poll: Poll,
    step: int,
    evaluator: Evaluator,
) -> dict[str, float]:
    """What `evaluator` makes of the model as it is trained so far. Raises UserError."""

    def forward(batch, *more):
        return trainer.engine(batch.to(ranks.device), *more)

    with _evaluating(trainer):
        return evaluator(recipe, ranks, manifest, collator, trainer.model, forward, poll, step)


@contextmanager
def _evaluating(trainer: Trainer) -> Iterator[None]:
    trainer.engine.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        trainer.engine.train()
