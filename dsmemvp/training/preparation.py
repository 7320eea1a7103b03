"""What a run begins with, before a model is built: its data, its stages, and the checkpoint that it resumes from."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from dsmemvp.backbones.fingerprint import fingerprint
from dsmemvp.backbones.weights import Base
from dsmemvp.checkpoints.checkpoint import Checkpoint, State, read_checkpoint
from dsmemvp.checkpoints.earlier import Earlier, start_checkpoint, with_earlier
from dsmemvp.config.reading import as_dict
from dsmemvp.config.recipe import START
from dsmemvp.config.stages import check_stage
from dsmemvp.data.collator import Collator
from dsmemvp.data.datasets import TrainingData
from dsmemvp.data.manifest import check_files
from dsmemvp.data.token_counts import TokenCounts, count_tokens, countable, counts_path
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.errors import UserError
from dsmemvp.fault_tolerance.restart_limit import count_start
from dsmemvp.stages import check_scaled, stages_of
from dsmemvp.training.checkpoint_manager import agreed_checkpoint
from dsmemvp.training.context import RunContext
from dsmemvp.training.loggers import check_loggers
from dsmemvp.training.stages import Span, identity_of, span_after, span_before, spans_of


@dataclass(frozen=True)
class Prepared:
    base: Base
    spans: list[Span]
    span: Span
    """The stage that the run begins in."""
    checkpoint: Checkpoint | None
    """The one that the run resumes from."""
    origin: Earlier
    """What that stage starts from, and its teacher."""
    complaints: list[str]
    """What is wrong with later ones."""
    start: State
    """Where the run begins, and what its checkpoints say of the recipe, the order and the base."""
    until: int
    """Steps of the run at its end, at that of the one stage to train, or at training.stop_at_step."""
    owes_validation: bool
    """Whether the run was asked to end while it validated."""

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.spans[-1].last

    @property
    def is_over(self) -> bool:
        return self.start.step >= self.until and not self.owes_validation


def prepare(context: RunContext, only: str = "") -> Prepared:
    """Opens data and checks the checkpoint against them, the recipe and the base. `only`: the one stage to train.
    Raises UserError or OSError."""
    recipe, ranks = context.recipe, context.ranks
    check_stage(recipe, only)
    check_loggers(recipe.training.loggers)
    base = Base(recipe)
    stages = stages_of(recipe, base.configs)
    check_scaled(recipe, base.configs, stages)
    spans = spans_of(stages, recipe, base)
    manifests = {id(m): m for span in spans for m in (*span.data.manifests, span.validation) if m}
    ranks.together(lambda: check_files(*manifests.values()) if ranks.first else None)
    first = _begins_with(spans, only)
    order = identity_of(spans)
    checkpoint, complaints = agreed_checkpoint(context.folder, ranks)
    ranks.together(lambda: _check_one_is_left(checkpoint, complaints))
    known = ranks.once_per_node(lambda: fingerprint(base))
    if checkpoint is not None:
        checkpoint.check_method(as_dict(recipe))
        checkpoint.check_order(order)
        checkpoint.check_base(known)
        if ranks.first:
            checkpoint.check_quantized(as_dict(recipe))
    state = checkpoint.state if checkpoint else State()
    until = first.last if only else spans[-1].last
    until = min(until, recipe.training.stop_at_step or until)
    if state.step < first.first:
        _check_predecessor(first, spans, state, context)
        checkpoint, state = None, State(step=first.first, epoch=first.epochs_before)
    owes = checkpoint is not None and _owes_validation(state, spans)
    span = span_before(spans, state.step) if owes else span_after(spans, state.step)
    start = replace(state, order=order, recipe=as_dict(recipe), base=known)
    origin = agreed_origin(span, spans, context, known)
    return Prepared(base, spans, span, checkpoint, origin, complaints, start, until, owes)


def _begins_with(spans: list[Span], only: str) -> Span:
    """The stage before which nothing is trained: the one that is asked for, or the last one with a start of its
    own."""
    if only:
        return next(span for span in spans if span.name == only)
    return next((span for span in reversed(spans) if span.start_from), spans[0])


def _check_predecessor(span: Span, spans: list[Span], state: State, context: RunContext) -> None:
    """Raises UserError if the stage is to start from the one before, and that is not trained."""
    if span.start_from:
        return
    before = spans[spans.index(span) - 1]
    raise UserError(
        f"--stage: {span.name} starts from the end of {before.name}, step {span.first}, and {context.folder} is at step"
        f" {state.step}; train that first, or name a run or a checkpoint in stages.{span.name}.{START}"
    )


def agreed_origin(span: Span, spans: list[Span], context: RunContext, base: dict[str, str]) -> Earlier:
    """As `origin_of`; every rank looks by itself. Raises UserError also if they find different checkpoints."""
    ranks = context.ranks
    origin = ranks.together(lambda: origin_of(span, spans, context.folder, context.recipe.method.name, base))
    if len(set(ranks.gather(["\n".join(str(found.trained) for found in origin.found)]))) > 1:
        raise UserError(
            f"stages: the ranks found different checkpoints, since the run that {START} names still trains; name one of"
            " its checkpoints"
        )
    return origin


def origin_of(span: Span, spans: list[Span], run: Path, method: str, base: dict[str, str]) -> Earlier:
    """What a stage starts from: the last checkpoint of the stage before, or the one that the recipe names for it, and
    those before that one, also of another run. Raises UserError if one that is named is missing, damaged, or of another
    base or method."""
    found: list[Checkpoint] = []
    last = run / "checkpoints" / f"step-{span.first:08d}"
    if span.first and not span.start_from and last.is_dir():
        found += with_earlier(read_checkpoint(last))
    begun = next((each for each in reversed(spans[: spans.index(span) + 1]) if each.start_from), None)
    if begun is not None:
        start = start_checkpoint(Path(begun.start_from), f"stages.{begun.name}.{START}")
        start.check_same_method(method)
        start.check_base(base)
        found += with_earlier(start)
    return Earlier(tuple(found))


def _check_one_is_left(checkpoint: Checkpoint | None, complaints: list[str]) -> None:
    """Raises UserError on the first rank, which alone knows the complaints."""
    if checkpoint is None and complaints:
        raise UserError(
            f"{complaints[0]}; no other checkpoint of the run is left, and to begin anew would remove its record: take"
            " another name for the run, or remove its folder"
        )


def count_this_start(context: RunContext, step: int) -> None:
    """Raises UserError if too many starts in a row have brought the run no further."""
    ranks, limit = context.ranks, context.recipe.training.most_fruitless_starts
    ranks.together(lambda: count_start(context.folder, step, os.environ, limit) if ranks.first else None)


def _owes_validation(state: State, spans: list[Span]) -> bool:
    span = span_before(spans, state.step)
    training = span.recipe.training
    owed = state.validation_loss is None or (training.best_by == "score" and state.validation_score is None)
    return span.validation is not None and state.step > span.first and span.is_judged(state.step) and owed


def training_token_counts(ranks: Ranks, run: Path, data: TrainingData, collator: Collator) -> TokenCounts | None:
    """The token counts by which a run balances its work: counted by the first rank, the same on all. None if the data
    is too large to be counted, or remote: then they are estimated. Raises UserError or OSError, the same on all
    ranks."""
    if not countable(data.manifests):
        return None
    ranks.together(lambda: count_tokens(run, data.manifests, collator) if ranks.first else None)
    token_counts = TokenCounts(counts_path(run, data.manifests, collator))
    samples = sum(manifest.samples for manifest in data.manifests)
    found = ranks.gather([ranks.together(lambda: token_counts.check(samples))])
    if len(set(found)) > 1:  # they would not agree on who computes what
        raise UserError(
            f"{token_counts.path} is not the same file on all nodes; `output` must lie on a shared file system"
        )
    return token_counts
