"""What a run begins with, before a model is built: its data, its stages, and the checkpoint that it resumes from."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from dsmemvp.backbones.fingerprint import fingerprint
from dsmemvp.checkpoints.checkpoint import Checkpoint, State
from dsmemvp.config.reading import as_dict
from dsmemvp.data.collator import Collator
from dsmemvp.data.datasets import TrainingData, open_training_data, open_validation_data
from dsmemvp.data.manifest import Manifest, check_files
from dsmemvp.data.token_counts import TokenCounts, count_tokens, countable, counts_path
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.errors import UserError
from dsmemvp.fault_tolerance.restart_limit import count_start
from dsmemvp.inputs import Inputs, open_inputs
from dsmemvp.prompts.interface import Stage
from dsmemvp.training.checkpoint_manager import agreed_checkpoint
from dsmemvp.training.context import RunContext
from dsmemvp.training.stages import Span, span_before, spans_of


@dataclass(frozen=True)
class Prepared:
    inputs: Inputs
    spans: list[Span]
    validation: Manifest | None
    checkpoint: Checkpoint | None
    """The one that the run resumes from."""
    complaints: list[str]
    """What is wrong with later ones."""
    start: State
    """Where the run begins, and what its checkpoints say of the recipe, the order and the base."""
    until: int
    """Steps of the run at its end, or at training.stop_at_step."""
    owes_validation: bool
    """Whether the run was asked to end while it validated."""

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.spans[-1].last

    @property
    def is_over(self) -> bool:
        return self.start.step >= self.until and not self.owes_validation


def prepare(context: RunContext) -> Prepared:
    """Opens data and checks the checkpoint against them, the recipe and the base. Raises UserError or OSError."""
    recipe, ranks = context.recipe, context.ranks
    data, validation = open_training_data(recipe), open_validation_data(recipe)
    manifests = [*data.manifests, *([validation] if validation else [])]
    ranks.together(lambda: check_files(*manifests) if ranks.first else None)
    inputs = open_inputs(recipe)
    stages = tuple(inputs.method.stages())
    spans = spans_of(stages, recipe, data)
    order = data.identity | _identity(stages)
    checkpoint, complaints = agreed_checkpoint(context.folder, ranks)
    ranks.together(lambda: _check_one_is_left(checkpoint, complaints))
    base = ranks.once_per_node(lambda: fingerprint(inputs.base))
    if checkpoint is not None:
        checkpoint.check_method(as_dict(recipe))
        checkpoint.check_order(order)
        checkpoint.check_base(base)
        if ranks.first:
            checkpoint.check_quantized(as_dict(recipe))
    state = checkpoint.state if checkpoint else State()
    until = min(spans[-1].last, recipe.training.stop_at_step or spans[-1].last)
    owes = validation is not None and _owes_validation(state, context, spans)
    start = replace(state, order=order, recipe=as_dict(recipe), base=base)
    return Prepared(inputs, spans, validation, checkpoint, complaints, start, until, owes)


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


def _identity(stages: tuple[Stage, ...]) -> dict[str, list]:
    """What stages change in the order of samples; nothing for a run of one that reads all data."""
    if len(stages) == 1 and stages[0].epochs is None and not stages[0].data:
        return {}
    return {"method.stages": [[stage.name, stage.epochs, list(stage.data)] for stage in stages]}


def _owes_validation(state: State, context: RunContext, spans: list[Span]) -> bool:
    training = context.recipe.training
    owed = state.validation_loss is None or (training.best_by == "score" and state.validation_score is None)
    ended = span_before(spans, state.step).ends_epochs(state.step, training.checkpoint_epochs)
    return bool(state.step) and ended and owed


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
