"""A recipe and a checkpoint -> the model, ready to answer: what evaluation, generation and inspection begin with."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import deepspeed

from dsmemvp.checkpoints.checkpoint import Checkpoint
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.collator import Collator
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.dtypes import NAMED
from dsmemvp.errors import UserError
from dsmemvp.inputs import Inputs, open_inputs
from dsmemvp.model import VisualLanguageModel
from dsmemvp.planning.deepspeed_settings import deepspeed_settings, partitioned
from dsmemvp.training.model_loading import WHOLE, build_model, cast, load_base


@dataclass(frozen=True)
class Inference:
    """A model in evaluation mode, or one that training lends (training/validation.py)."""

    collator: Collator
    """For training; `replace(collator, answers=True)` for reading answers."""
    model: VisualLanguageModel
    forward: Callable[..., Any]
    """All ranks must call it the same number of times: `forward(batch)` -> (logits [S, V], the method's losses), or
    `forward(batch, decoding)` to decode. The batch may be on any device."""


def open_for_inference(
    recipe: Recipe, ranks: Ranks, checkpoint: Checkpoint | None, whole: bool = False, inputs: Inputs | None = None
) -> Inference:
    """The model with a checkpoint's values (None: its initial ones). `whole`: each rank holds the model by itself,
    whatever the recipe's training.deepspeed says. `inputs` are those of the checkpoint's stage. Raises UserError, also
    for a stage that answers nothing, or OSError."""
    inputs = inputs or open_inputs(recipe, stage=checkpoint.state.stage if checkpoint else "")
    _check_towers(inputs, checkpoint)
    # training may have read features; here pictures come that it has not seen
    recipe = replace(recipe, vision=replace(recipe.vision, cache_features=""))
    settings = WHOLE if whole else deepspeed_settings(recipe, ranks.world, training=False)
    model = build_model(recipe, inputs.configs, settings, ranks, load_base(inputs.base, ranks), inputs.stage)
    trainables = model.trainables()
    if checkpoint is not None:
        values = checkpoint.values({name: tuple(p.shape) for name, p in trainables.items()})
        for name, parameter in trainables.items():
            parameter.data.copy_(values[name])
    cast(trainables, ranks.device, NAMED[recipe.model.dtype])
    run: Any = model.eval()
    if partitioned(settings):
        run, *_ = deepspeed.initialize(model=model, config=settings, dist_init_required=False)
        run.eval()
    return Inference(inputs.collator, model, lambda batch, *decoding: run(batch.to(ranks.device), *decoding))


def _check_towers(inputs: Inputs, checkpoint: Checkpoint | None) -> None:
    """Raises UserError for a stage without a language model, or that sees no images of a method that does."""
    stage = inputs.stage
    if not stage.decoder or (inputs.method.sees_images and not stage.vision):
        where = checkpoint.trained.parent if checkpoint else "the method"
        what = "no vision tower" if stage.decoder else "no language model"
        raise UserError(f"{where} ends with the stage {stage.name}, which has {what}; take one of a later stage")
