"""Recipe -> a DeepSpeed engine around the model; under ZeRO-3 a rank loads only its partitions of the frozen part."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import deepspeed
import torch
from deepspeed.utils import set_z3_leaf_module
from torch import nn

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.partitioned import give_memory, whole_shape
from dsmemvp.backbones.quantized import check_form
from dsmemvp.backbones.weights import Base
from dsmemvp.checkpoints.checkpoint import Checkpoint, Tensors
from dsmemvp.config.recipe import Recipe, Training
from dsmemvp.data.batch import Batch
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.dtypes import NAMED
from dsmemvp.errors import UserError
from dsmemvp.model import VisualLanguageModel, add_trainables, build_empty, loss_sum
from dsmemvp.planning.budget import activation_budget
from dsmemvp.planning.deepspeed_file import PREFETCH
from dsmemvp.planning.deepspeed_settings import deepspeed_settings, partitioned
from dsmemvp.planning.memory import RESERVE
from dsmemvp.planning.sharding import prefetched
from dsmemvp.training.gradients import GradientWatch
from dsmemvp.training.master_weights import MasterWeights, set_module_value

log = logging.getLogger(__name__)
LANGUAGE = "language"
"""The language model's loss, among a method's own."""
WHOLE: dict[str, Any] = {"zero_optimization": {"stage": 0}}
"""Settings of a model that DeepSpeed has no part in."""


class Trainer:
    """The model under DeepSpeed, for one stage at a time: each has an engine and an optimizer of its own, which know
    only what it trains, so that nothing else can be moved by weight decay, moments or the gradient of an earlier stage.
    """

    engine: deepspeed.DeepSpeedEngine
    """Runs forward, backward and update."""
    master_weights: MasterWeights
    """Float32 values of what the stage trains."""
    gradients: GradientWatch | None
    held: Tensors
    """Float32 values of what the stage does not train."""

    def __init__(
        self,
        recipe: Recipe,
        ranks: Ranks,
        model: VisualLanguageModel,
        trainables: dict[str, nn.Parameter],
        values: Tensors,
        trains: Sequence[str],
    ):
        """`trainables` are all that any stage trains, `values` their float32 values."""
        self.recipe, self.ranks, self.model, self.trainables = recipe, ranks, model, trainables
        for start in recipe.training.scaled_tensors:
            if not any(name.startswith(start) for name in trainables):
                one = next(iter(trainables))
                raise UserError(
                    f"training.scaled_tensors: no trained tensor's name begins with {start!r}; one is {one}"
                )
        self._start(trains, values)

    def begin_stage(self, trains: Sequence[str]) -> None:
        """The next stage trains the tensors whose names begin so (none: all). Moments begin anew. All ranks call it
        together. Raises UserError if there are none."""
        values = self.values()
        if partitioned(deepspeed_settings(self.recipe, self.ranks.world)):
            self.engine.empty_partition_cache()
        self.engine.destroy()
        self._start(trains, values)

    def _start(self, trains: Sequence[str], values: Tensors) -> None:
        settings = deepspeed_settings(self.recipe, self.ranks.world)
        trained = {name: p for name, p in self.trainables.items() if not trains or name.startswith(tuple(trains))}
        if not trained:
            raise UserError(f"method {self.recipe.method.name}: a stage trains {', '.join(trains)}, which do not exist")
        for name, parameter in self.trainables.items():
            parameter.requires_grad_(name in trained)
        self.engine = build_engine(self.model, trained, self.recipe, self.ranks, settings)
        self.master_weights = MasterWeights(self.engine, trained, self.ranks, partitioned(settings))
        self.master_weights.set_moments({}, updates=0)
        self.set(values)
        self.gradients = GradientWatch(trained)

    def set(self, values: Tensors) -> None:
        """Float32 values of all trainables, trained in this stage or not."""
        shapes = self.master_weights.shapes()
        self.master_weights.set({name: values[name] for name in shapes})
        self.held = {name: values[name].float().cpu() for name in self.trainables if name not in shapes}
        for name, value in self.held.items():
            set_module_value(self.trainables[name], value)

    def values(self) -> Tensors:
        """Whole float32 tensors of all trainables on the CPU. All ranks call it together."""
        values = self.held | self.master_weights.values()
        return {name: values[name] for name in self.trainables}

    def gather(self) -> Callable[[], tuple[Tensors, Tensors]]:
        """As `MasterWeights.gather`: values of all trainables, moments of what the stage trains."""
        gathered, held = self.master_weights.gather(), self.held  # of this stage, if another has begun meanwhile

        def whole() -> tuple[Tensors, Tensors]:
            values, moments = gathered()
            return {name: held[name] if name in held else values[name] for name in self.trainables}, moments

        return whole

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all trainables."""
        return {name: whole_shape(p) for name, p in self.trainables.items()}

    def resume(self, checkpoint: Checkpoint, with_moments: bool) -> None:
        """Take a checkpoint's values, and Adam's moments if it is of the same stage."""
        self.set(checkpoint.values(self.shapes()))
        if with_moments:
            moments = checkpoint.moments(self.master_weights.shapes())
            self.master_weights.set_moments(moments, checkpoint.state.updates)

    def check_gradients(self, ranks: Ranks) -> None:
        """After the first backward: raises UserError if a trained tensor received no gradient."""
        if self.gradients is not None:
            self.gradients.check_all_received(ranks)
            self.gradients = None

    def accumulate(
        self,
        batches: Sequence[Batch],
        scale: float,
        poll: Callable[[], object] = lambda: None,
        auxiliary: Mapping[str, float] = MappingProxyType({}),
    ) -> dict[str, float]:
        """Forward and backward of a step's micro-batches. The gradient is that of `scale` x the language model's loss,
        summed over supervised tokens, + the method's losses, each x its scale in `auxiliary`, added over ranks. Returns
        the sums on this rank, unscaled, by name (LANGUAGE and those of `auxiliary`). `poll` is called between
        micro-steps, and may raise to break the step off."""
        averaged = self.engine.world_size  # DeepSpeed averages over ranks, but a sum is wanted
        sums = {name: torch.zeros((), device=self.engine.device) for name in (LANGUAGE, *auxiliary)}
        for i, batch in enumerate(batches):
            if i > 0:
                poll()
                self.engine.step()  # closes the micro-step before; only the last one updates
            # the number of micro-steps may differ from step to step, so DeepSpeed does not count them
            self.engine.set_gradient_accumulation_boundary(i == len(batches) - 1)
            batch = batch.to(self.engine.device)
            logits_SV, losses = self.engine(batch)
            language = loss_sum(logits_SV, batch.targets)
            total = language * scale
            sums[LANGUAGE] += language.detach()
            for name, own in auxiliary.items():
                total = total + losses[name] * own
                sums[name] += losses[name].detach()
            self.engine.backward(total * averaged)
        return {name: value.item() for name, value in sums.items()}

    def update(self, learning_rate: float) -> float:
        """The optimizer step of the last micro-step; returns the norm of the global gradient: infinity if it is not
        finite, and then DeepSpeed has updated nothing."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return math.inf if norm is None or not self.engine.was_step_applied() else float(norm)


Load = Callable[[VisualLanguageModel, Recipe], object]


def load_base(base: Base, ranks: Ranks) -> Load:
    """Loads what `base` has opened already; the first rank says how far it is."""
    return lambda model, recipe: base.load(model, tell=ranks.first)


def build_model(
    recipe: Recipe, configs: Configs, settings: dict[str, Any], ranks: Ranks, load: Load | None = None
) -> VisualLanguageModel:
    """The whole model with its frozen weights loaded (by `load`; None: from the recipe's folders). Under ZeRO-3 no rank
    ever holds more of the frozen part than its partitions and one tensor that has no values yet. Nothing is sent
    between ranks but whether all have loaded; errors are raised on all. Raises UserError if products of
    model.quantize cannot be computed here."""
    check_form(recipe.model.quantize, ranks.device)
    before = torch.get_default_dtype()
    torch.set_default_dtype(NAMED[recipe.model.dtype])
    try:
        model = build_empty(recipe, configs, ranks.device)
    finally:
        torch.set_default_dtype(before)
    if partitioned(settings):
        give_memory(model, ranks.device, _cut(settings))
    else:
        give_memory(model, ranks.device)
    read = load or load_base(Base(recipe), ranks)
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


def build_trainer(
    recipe: Recipe, configs: Configs, ranks: Ranks, load: Load | None = None, trains: Sequence[str] = ()
) -> Trainer:
    """`load` as in `build_model`; `trains` as in `Trainer.begin_stage`. Raises UserError if there are none."""
    settings = deepspeed_settings(recipe, ranks.world)
    model = build_model(recipe, configs, settings, ranks, load)
    trainables = model.trainables()
    if not trainables:
        raise UserError(f"method.name: {recipe.method.name!r} has no trainable parameters; it can only be evaluated")
    # the master weights start from these unrounded values; the module computes in the recipe's type
    initial = {name: p.detach().clone() for name, p in trainables.items()}
    cast(trainables, ranks.device, NAMED[recipe.model.dtype])
    trainer = Trainer(recipe, ranks, model, trainables, initial, trains)
    if recipe.training.recompute == "auto":
        budget = activation_budget(recipe, configs, _free_bytes(recipe, ranks.device))
        model.choose = budget.following(model.method)
        if ranks.first:
            log.info("activations: %s", budget.example(recipe.training.micro_batch))
    return trainer


def _free_bytes(recipe: Recipe, device: torch.device) -> int:
    """For activations: training.activation_budget, or of a GPU what is free but for a reserve. Raises UserError if
    neither is known."""
    if recipe.training.activation_budget:
        return int(recipe.training.activation_budget * 2**30)
    if device.type != "cuda":
        raise UserError("training.activation_budget: say how many GiB activations may take; only a GPU's are known")
    return torch.cuda.mem_get_info(device)[0] - RESERVE


def build_engine(
    model: VisualLanguageModel, trained: dict[str, nn.Parameter], recipe: Recipe, ranks: Ranks, settings: dict[str, Any]
) -> deepspeed.DeepSpeedEngine:
    training = recipe.training
    optimizer = torch.optim.AdamW(
        parameter_groups(trained, training),
        lr=training.learning_rate,
        betas=(training.betas[0], training.betas[1]),
        fused=ranks.device.type == "cuda",
    )
    whole = set(model.whole_blocks()) if partitioned(settings) else set()
    for block in model.language.layers:  # what an earlier stage has frozen may train in this one
        set_z3_leaf_module(block, block in whole)
    zero = settings["zero_optimization"]
    if zero.get(PREFETCH) == "auto":
        sizes = [sum(math.prod(whole_shape(p)) for p in block.parameters()) for block in whole]
        zero[PREFETCH] = prefetched(max(sizes, default=0))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    return engine


def cast(trainables: dict[str, nn.Parameter], device: torch.device, dtype: torch.dtype) -> None:
    """To the device and type of the frozen part: DeepSpeed's gathers want one type."""
    for parameter in trainables.values():
        parameter.data = parameter.data.to(device, dtype)


def parameter_groups(trainables: dict[str, nn.Parameter], training: Training) -> list[dict[str, Any]]:
    """Vectors (biases) are not decayed, everything else is; the learning rate of a group is that of the step times its
    `rate`. An empty group is left out: schedulers choke on it."""
    grouped: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for rate in (1.0, training.scaled_rate):
        grouped |= {(rate, True): [], (rate, False): []}
    for name, parameter in trainables.items():
        rate = training.scaled_rate if name.startswith(tuple(training.scaled_tensors)) else 1.0
        # not `dim()`: one that an earlier stage's engine has cut is flat
        grouped[rate, len(whole_shape(parameter)) > 1].append(parameter)
    return [
        {"params": own, "weight_decay": training.weight_decay if decayed else 0.0, "rate": rate}
        for (rate, decayed), own in grouped.items()
        if own
    ]
