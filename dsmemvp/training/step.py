"""One optimizer step. The loss is the sum over supervised tokens divided by their number in the whole global batch, so
that it depends on neither ranks nor micro-batches; a method's own losses are divided by their counts in the same way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from dsmemvp.data.balancing import CostModel, batch_cost, imbalance
from dsmemvp.data.batch import MicroBatch
from dsmemvp.dropout import step_seed
from dsmemvp.errors import UserError
from dsmemvp.training.context import RunContext
from dsmemvp.training.engine import LANGUAGE, Trainer
from dsmemvp.training.schedule import learning_rate
from dsmemvp.training.stages import Span

PHASE = "forward and backward"


@dataclass(frozen=True)
class Totals:
    """What a step's micro-batches hold, over all ranks."""

    asked: bool
    """Whether a rank was asked to end."""
    requested: bool
    """Whether a checkpoint was requested."""
    samples: float
    tokens: float
    skipped: float
    cut: float
    counts: dict[str, float]
    """What each loss and measure is divided by: LANGUAGE's supervised tokens, if there is a language model, and the
    method's own counts."""
    imbalance: float


@dataclass(frozen=True)
class Result:
    loss: float
    """What is trained on: the weighted sum of `losses`."""
    losses: dict[str, float]
    """By name, each divided by its count: LANGUAGE and the method's own."""
    measures: dict[str, float]
    """The same of what is computed for the record alone."""
    rate: float
    norm: float


def exchange(
    context: RunContext,
    trainer: Trainer,
    span: Span,
    batches: Sequence[MicroBatch],
    costs: CostModel,
    requested: bool,
) -> Totals:
    """One collective: what all ranks must know before a step. `requested` is this rank's."""
    names = [*_weights(span), *span.stage.measures]
    counts = [trainer.model.method.loss_counts(micro.batch) for micro in batches] if names else []
    own = [float(context.stop.asked), float(requested)]
    own += [sum(len(micro.indices) for micro in batches), sum(sum(_lengths(micro)) for micro in batches)]
    own += [sum(len(micro.skipped) for micro in batches), sum(micro.cut for micro in batches)]
    own += [sum(micro.batch.targets.numel() for micro in batches)]
    own += [sum(count[name] for count in counts) for name in names]
    rows = context.ranks.table(*own, *(batch_cost(micro.batch, costs) for micro in batches))
    totals = [sum(column) for column in list(zip(*rows, strict=True))[: len(own)]]
    asked, requests, samples, tokens, skipped, cut, supervised, *all_counts = totals
    language = {LANGUAGE: supervised} if span.stage.decoder else {}
    return Totals(
        bool(asked),
        bool(requests),
        samples,
        tokens,
        skipped,
        cut,
        language | dict(zip(names, all_counts, strict=True)),
        imbalance([row[len(own) :] for row in rows]),
    )


def take_step(
    context: RunContext, trainer: Trainer, span: Span, step: int, batches: Sequence[MicroBatch], totals: Totals
) -> Result:
    """The step after `step` steps. Raises UserError if the global batch has nothing to train on, and Stopped if a rank
    was asked to end before the update."""
    weights = {LANGUAGE: span.stage.language_loss} if span.stage.decoder else {}
    weights |= _weights(span)
    # a loss that counts nothing in this global batch is zero, as is its gradient
    scales = {name: weight / totals.counts[name] if totals.counts[name] else 0.0 for name, weight in weights.items()}
    if not any(scales.values()):
        raise UserError(f"step {step + 1}: no sample of the global batch could be used; see data.on_bad_sample")
    seed = step_seed(context.recipe.seed, step)
    context.at(PHASE, step)
    auxiliary: dict[str, float | None] = {name: scale for name, scale in scales.items() if name != LANGUAGE}
    auxiliary |= dict.fromkeys(span.stage.measures)
    sums = trainer.accumulate(
        [replace(micro.batch, dropout_seed=seed) for micro in batches],
        scales.get(LANGUAGE, 0.0),
        partial(context.poll, PHASE, step),
        auxiliary,
    )
    summed = dict(zip(sums, context.ranks.sums(*sums.values()), strict=True))
    means = {name: summed[name] / max(totals.counts[name], 1) for name in sums}
    losses = {name: mean for name, mean in means.items() if name in weights}
    loss = sum(losses[name] * weights[name] for name in losses)
    trainer.check_gradients(context.ranks)
    context.at("update", step)
    rate = learning_rate(step - span.first, span.per_epoch, span.recipe.training, span.epochs)
    # DeepSpeed itself leaves out an update whose gradient is not finite; with a rate of 0 the others change nothing
    norm = trainer.update(rate if math.isfinite(loss) else 0.0)
    return Result(loss, losses, {name: means[name] for name in span.stage.measures}, rate, norm)


def _weights(span: Span) -> dict[str, float]:
    """Of the method's losses that the stage trains on."""
    return {name: weight for name, weight in span.stage.losses.items() if weight}


def _lengths(micro: MicroBatch) -> Sequence[int]:
    """Of its samples: a micro-batch without any holds one lone token that counts for nothing."""
    return micro.batch.lengths if micro.indices else ()
