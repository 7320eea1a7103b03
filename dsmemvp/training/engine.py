"""Recipe -> a DeepSpeed engine around the model; under ZeRO-3 a rank loads only its partitions of the frozen part."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import deepspeed
import torch
from torch import nn

from dsmemvp.backbones.joined import Configs, VisualLanguageModel, add_trainables, build_empty, loss_sum
from dsmemvp.backbones.partitioned import give_memory
from dsmemvp.backbones.weights import load_frozen
from dsmemvp.checkpoints.checkpoint import Checkpoint
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import Batch
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.errors import UserError
from dsmemvp.planning.deepspeed_settings import deepspeed_settings, partitioned
from dsmemvp.training.master_weights import MasterWeights, PartitionedMasterWeights, ReplicatedMasterWeights

WHOLE: dict[str, Any] = {"zero_optimization": {"stage": 0}}
"""Settings of a model that DeepSpeed has no part in."""
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass
class Trainer:
    """The model under DeepSpeed. `engine` runs forward, backward and update; `masters` are its float32 values."""

    engine: deepspeed.DeepSpeedEngine
    model: VisualLanguageModel
    master_weights: MasterWeights

    def accumulate(self, batches: list[Batch], scale: float, poll: Callable[[], object] = lambda: None) -> float:
        """Forward and backward of a step's micro-batches; returns the loss summed over their supervised tokens on this
        rank. The gradient is that of `scale` x this sum, added over ranks. `poll` is called between micro-steps, and
        may raise to break the step off."""
        averaged = self.engine.world_size  # DeepSpeed averages over ranks where a sum is wanted
        total = torch.zeros((), device=self.engine.device)
        for i, batch in enumerate(batches):
            if i > 0:
                poll()
                self.engine.step()  # closes the micro-step before; only the last one updates
            # the number of micro-steps may differ from step to step, so DeepSpeed does not count them
            self.engine.set_gradient_accumulation_boundary(i == len(batches) - 1)
            batch = batch.to(self.engine.device)
            loss = loss_sum(self.engine(batch), batch.targets)
            self.engine.backward(loss * (scale * averaged))
            total += loss.detach()
        return total.item()

    def update(self, learning_rate: float) -> float:
        """The optimizer step of the last micro-step; returns the norm of the global gradient: infinity where it is not
        finite, and then DeepSpeed has updated nothing."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return math.inf if norm is None or not self.engine.was_step_applied() else float(norm)


Load = Callable[[VisualLanguageModel, Recipe], object]


def build_model(
    recipe: Recipe, configs: Configs, settings: dict[str, Any], ranks: Ranks, load: Load | None = None
) -> VisualLanguageModel:
    """The whole model with its frozen weights loaded (by `load`; None: from the recipe's folders). Under ZeRO-3 no rank
    ever holds more of the frozen part than its partitions and one tensor that has no values yet. Nothing is sent
    between ranks but whether all have loaded; errors are raised on all."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(TYPES[recipe.model.dtype])
    try:
        model = build_empty(recipe, configs, ranks.device)
    finally:
        torch.set_default_dtype(before)
    if partitioned(settings):
        give_memory(model, ranks.device, _cut(settings))
    else:
        give_memory(model, ranks.device)
    read = load or partial(load_frozen, tell=ranks.first)
    ranks.together(lambda: read(model, recipe))
    add_trainables(model, recipe, configs)
    return model


def _cut(settings: dict[str, Any]) -> Callable[[nn.Parameter], None]:
    """What makes a parameter ZeRO-3's and frees all but this rank's partition, values being of no interest yet.

    DeepSpeed's public ways (`zero.Init` around a constructor or a module) also broadcast every parameter from the first
    rank, so the two steps around that broadcast are called by themselves; the first one has no public name."""
    # a module without parameters: takes settings only, and turns on what they say of linear layers' memory; the type
    # comes from the settings, too, since DeepSpeed 0.19 takes an explicit float32 for bf16 on CPUs
    init: Any = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=settings)

    def cut(parameter: Any) -> None:
        init._convert_to_deepspeed_param(parameter)
        parameter.partition()

    return cut


def build_trainer(recipe: Recipe, configs: Configs, ranks: Ranks, load: Load | None = None) -> Trainer:
    """`load` as in `build_model`. Raises UserError where the recipe has nothing to train."""
    settings = deepspeed_settings(recipe, ranks.world)
    model = build_model(recipe, configs, settings, ranks, load)
    trainables = model.trainables()
    if not trainables:
        raise UserError("method.name: 'none' has no trainable parameters; it can only be evaluated")
    # the masters start from these unrounded values; the module computes in the recipe's type
    initial = {name: p.detach().clone() for name, p in trainables.items()}
    _cast(trainables, ranks.device, TYPES[recipe.model.dtype])
    optimizer = torch.optim.AdamW(
        decay_groups(trainables, recipe.training.weight_decay),
        lr=recipe.training.learning_rate,
        betas=(recipe.training.betas[0], recipe.training.betas[1]),
        fused=ranks.device.type == "cuda",
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    master_weights = (PartitionedMasterWeights if partitioned(settings) else ReplicatedMasterWeights)(
        engine, trainables
    )
    master_weights.set(initial)
    master_weights.set_moments({}, updates=0)
    return Trainer(engine, model, master_weights)


def _cast(trainables: dict[str, nn.Parameter], device: torch.device, dtype: torch.dtype) -> None:
    """To where and in which type the frozen part is: DeepSpeed's gathers want one type."""
    for parameter in trainables.values():
        parameter.data = parameter.data.to(device, dtype)


def decay_groups(trainables: dict[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Vectors (biases) are not decayed, everything else is. An empty group is left out: schedulers choke on it."""
    groups = [
        {"params": [p for p in trainables.values() if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainables.values() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_for_inference(
    recipe: Recipe, configs: Configs, ranks: Ranks, checkpoint: Checkpoint | None, whole: bool = False
) -> tuple[VisualLanguageModel, Callable[..., Any]]:
    """The model with a checkpoint's values (None: its initial ones), and its forward, which all ranks must call the
    same number of times: `forward(batch)`, or `forward(batch, step)` to decode. `whole`: each rank holds the
    model by itself, whatever the recipe's training.deepspeed says."""
    settings = WHOLE if whole else deepspeed_settings(recipe, ranks.world, training=False)
    model = build_model(recipe, configs, settings, ranks)
    trainables = model.trainables()
    if checkpoint is not None:
        values = checkpoint.values({name: tuple(p.shape) for name, p in trainables.items()})
        for name, parameter in trainables.items():
            parameter.data.copy_(values[name])
    _cast(trainables, ranks.device, TYPES[recipe.model.dtype])
    if not partitioned(settings):
        return model.eval(), lambda batch, *step: model(batch.to(ranks.device), *step)
    engine, *_ = deepspeed.initialize(model=model, config=settings, dist_init_required=False)
    engine.eval()
    return model, lambda batch, *step: engine(batch.to(ranks.device), *step)
