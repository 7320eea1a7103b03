"""What is measured without training: the loss and the score on data.validation, which tell which checkpoints are best,
and the loss of a stage's teacher."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from dsmemvp.data.batch import MicroBatch
from dsmemvp.data.collator import Collator
from dsmemvp.data.loader import Share, evaluation_steps
from dsmemvp.data.manifest import Manifest
from dsmemvp.errors import UserError
from dsmemvp.model import loss_sum
from dsmemvp.training.context import RunContext
from dsmemvp.training.engine import Trainer
from dsmemvp.training.inference import Inference

Evaluator = Callable[[RunContext, Inference, Manifest, int], dict[str, float]]
"""(context, the model as it is trained so far, data.validation, step) -> the scores that the recipe asks for, by name,
the main one first; the same on all ranks. It polls the context between batches. The later room `evaluation` has
it, so the run is given it."""


def validation_loss(context: RunContext, trainer: Trainer, collator: Collator, data: Manifest, step: int) -> float:
    """Per supervised token, over all samples, without dropout. Raises UserError if no sample can be used, and what
    `RunContext.poll` raises."""
    ranks, recipe = context.ranks, context.recipe
    share = Share(ranks.rank, ranks.world, recipe.evaluation.batch)
    total, tokens = 0.0, 0
    with evaluating(trainer):
        for (part,) in ranks.in_step(evaluation_steps(data, collator, share, recipe.data.workers)):
            context.poll("validating", step)
            batch = part.batch.to(ranks.device)
            logits_SV, _ = trainer.engine(batch)
            total += loss_sum(logits_SV, batch.targets).item()
            tokens += batch.targets.numel()
    loss, supervised = ranks.sums(total, tokens)
    if not supervised:
        raise UserError(f"data.validation: no sample of {data.location} could be used")
    return loss / supervised


def reference_loss(context: RunContext, trainer: Trainer, batches: Sequence[MicroBatch], step: int) -> float:
    """The language model's loss on a step's micro-batches, per supervised token, with what the stage's teacher makes
    of their captions in the place of what is trained (prompts/interface.py, `taught`). All ranks call it together."""
    ranks = context.ranks
    total, tokens = 0.0, 0
    with evaluating(trainer):
        for micro in batches:
            context.at("measuring", step)
            batch = micro.batch.to(ranks.device)
            logits_SV, _ = trainer.engine(batch, None, True)
            total += loss_sum(logits_SV, batch.targets).item()
            tokens += batch.targets.numel()
    loss, supervised = ranks.sums(total, tokens)
    return loss / max(supervised, 1)


def validation_scores(
    context: RunContext, trainer: Trainer, collator: Collator, data: Manifest, step: int, evaluator: Evaluator
) -> dict[str, float]:
    """What `evaluator` makes of the model as it is trained so far. Raises UserError."""

    def forward(batch, *decoding):
        return trainer.engine(batch.to(context.ranks.device), *decoding)

    with evaluating(trainer):
        return evaluator(context, Inference(collator, trainer.model, forward), data, step)


@contextmanager
def evaluating(trainer: Trainer) -> Iterator[None]:
    trainer.engine.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        trainer.engine.train()
