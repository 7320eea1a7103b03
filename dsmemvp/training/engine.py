"""A stage of a recipe -> a DeepSpeed engine around the model (model_loading.py), and what is done with it."""

import gc
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
from deepspeed.utils import set_z3_leaf_module
from torch import nn

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.partitioned import is_partitioned, whole_shape
from dsmemvp.checkpoints.checkpoint import Checkpoint, Tensors
from dsmemvp.config.recipe import Recipe, Training
from dsmemvp.data.batch import Batch
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.dtypes import NAMED
from dsmemvp.errors import UserError
from dsmemvp.model import VisualLanguageModel, loss_sum
from dsmemvp.planning.budget import activation_budget
from dsmemvp.planning.deepspeed_file import PREFETCH
from dsmemvp.planning.deepspeed_settings import deepspeed_settings, partitioned
from dsmemvp.planning.memory import RESERVE
from dsmemvp.planning.sharding import prefetched
from dsmemvp.prompts.interface import Stage
from dsmemvp.stages import stages_of
from dsmemvp.training.gradients import GradientWatch
from dsmemvp.training.master_weights import MasterWeights, set_module_value
from dsmemvp.training.model_loading import Load, build_model, cast

log = logging.getLogger(__name__)
LANGUAGE = "language"
"""The language model's loss, among a method's own."""


class Trainer:
    """The model under DeepSpeed, for one stage at a time: each has an engine and an optimizer of its own, which know
    only what it trains, so that nothing else can be moved by weight decay, moments or the gradient of an earlier stage.
    A stage of other parts than the one before has a model of its own, too (`build`).
    """

    recipe: Recipe
    """As it holds in the stage."""
    stage: Stage
    model: VisualLanguageModel
    trainables: dict[str, nn.Parameter]
    """What takes part in the stage and some stage trains."""
    engine: deepspeed.DeepSpeedEngine
    """Runs forward, backward and update."""
    master_weights: MasterWeights
    """Float32 values of what the stage trains."""
    gradients: GradientWatch | None
    held: Tensors
    """Float32 values of what the stage does not train."""

    def __init__(self, recipe: Recipe, configs: Configs, ranks: Ranks, load: Load | None, stage: Stage):
        self.ranks, self._configs, self._load = ranks, configs, load
        self.build(recipe, stage)

    def build(self, recipe: Recipe, stage: Stage) -> None:
        """A model of the stage's parts in place of the one before, of which nothing stays in memory: with its initial
        values, and a teacher that has none yet. All ranks call it together. Raises UserError."""
        self._release()
        ranks, configs = self.ranks, self._configs
        settings = deepspeed_settings(recipe, ranks.world)
        self.recipe, self.stage = recipe, stage
        self.model = build_model(recipe, configs, settings, ranks, self._load, stage)
        self.trainables = self.model.trainables()
        if not self.trainables:
            raise UserError(
                f"method.name: {recipe.method.name!r} has no trainable parameters; it can only be evaluated"
            )
        # the master weights start from these unrounded values; the module computes in the recipe's type
        initial = {name: p.detach().clone() for name, p in self.trainables.items()}
        cast(self.trainables, ranks.device, NAMED[recipe.model.dtype])
        self._start(initial)
        if stage.vocabulary and self.model.teacher is None:
            self.model.method.begin_stage(stage, None, self._vocabulary())
        if recipe.training.recompute == "auto" and self.model.language is not None:
            if partitioned(settings) and ranks.world > 1:
                _check_auto(self.model, recipe)
            budget = activation_budget(recipe, configs, _free_bytes(recipe, ranks.device), stage)
            self.model.choose = budget.following(self.model.method)
            if ranks.first:
                log.info("activations: %s", budget.example(recipe.training.micro_batch))

    def begin_stage(self, recipe: Recipe, stage: Stage) -> None:
        """The next stage, of the same parts. Moments begin anew. All ranks call it together. Raises UserError if it
        trains nothing."""
        values = self.values()
        self._end_engine()
        self.recipe, self.stage = recipe, stage
        self.model.method.begin_stage(stage, None, self._vocabulary() if stage.vocabulary else None)
        self._start(values)

    def teach(self, values: Tensors) -> None:
        """The values of the stage's teacher, by their names in checkpoints. All ranks call it together."""
        assert self.model.teacher is not None
        prefix, module = self.model.teacher
        for name, parameter in module.named_parameters():
            parameter.data.copy_(values[f"{prefix}{name}"])
        module.requires_grad_(False).eval().to(self.ranks.device, NAMED[self.recipe.model.dtype])
        vocabulary_Vd = self._vocabulary() if self.stage.vocabulary else None
        self.model.method.begin_stage(self.stage, module, vocabulary_Vd)

    def teacher_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the teacher's tensors, by their names in checkpoints; none if the stage has no teacher."""
        if self.model.teacher is None:
            return {}
        prefix, module = self.model.teacher
        return {f"{prefix}{name}": tuple(p.shape) for name, p in module.named_parameters()}

    def _vocabulary(self) -> torch.Tensor:
        """[V, d], a copy of the language model's input embeddings on this rank."""
        weight = self.model.language.embed_tokens.weight
        if not is_partitioned(weight):
            return weight.detach().clone()
        with deepspeed.zero.GatheredParameters([weight]):
            return weight.detach().clone()

    def _end_engine(self) -> None:
        if partitioned(deepspeed_settings(self.recipe, self.ranks.world)):
            self.engine.empty_partition_cache()
        self.engine.destroy()

    def _release(self) -> None:
        if not hasattr(self, "engine"):
            return
        self._end_engine()
        # a list of DeepSpeed's that begins with each engine's module, and from which `destroy` takes none
        FWD_MODULE_STACK[:] = [module for module in FWD_MODULE_STACK if module is not self.model]
        del self.engine, self.master_weights, self.gradients, self.held, self.trainables, self.model
        gc.collect()  # DeepSpeed's hooks and parameters hold one another
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()

    def _start(self, values: Tensors) -> None:
        settings, trains = deepspeed_settings(self.recipe, self.ranks.world), self.stage.trains
        trained = {name: p for name, p in self.trainables.items() if not trains or name.startswith(trains)}
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

    def resume(self, checkpoint: Checkpoint) -> None:
        """Take the values and Adam's moments of a checkpoint of the stage."""
        self.set(checkpoint.values(self.shapes()))
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
        auxiliary: Mapping[str, float | None] = MappingProxyType({}),
    ) -> dict[str, float]:
        """Forward and backward of a step's micro-batches. The gradient is that of `scale` x the language model's loss,
        summed over supervised tokens, + the method's losses, each x its scale in `auxiliary` (None: only summed up),
        added over ranks. Returns the sums on this rank, unscaled, by name (LANGUAGE, if there is a language model, and
        those of `auxiliary`). `poll` is called between micro-steps, and may raise to break the step off."""
        averaged = self.engine.world_size  # DeepSpeed averages over ranks, but a sum is wanted
        names = (LANGUAGE, *auxiliary) if self.model.language is not None else tuple(auxiliary)
        sums = {name: torch.zeros((), device=self.engine.device) for name in names}
        for i, batch in enumerate(batches):
            if i > 0:
                poll()
                self.engine.step()  # closes the micro-step before; only the last one updates
            # the number of micro-steps may differ from step to step, so DeepSpeed does not count them
            self.engine.set_gradient_accumulation_boundary(i == len(batches) - 1)
            batch = batch.to(self.engine.device)
            logits_SV, losses = self.engine(batch)
            terms = []
            if LANGUAGE in sums:
                language = loss_sum(logits_SV, batch.targets)
                terms.append(language * scale)
                sums[LANGUAGE] += language.detach()
            for name, own in auxiliary.items():
                if own is not None:
                    terms.append(losses[name] * own)
                sums[name] += losses[name].detach()
            self.engine.backward(sum(terms[1:], start=terms[0]) * averaged)
        return {name: value.item() for name, value in sums.items()}

    def update(self, learning_rate: float) -> float:
        """The optimizer step of the last micro-step; returns the norm of the global gradient: infinity if it is not
        finite, and then DeepSpeed has updated nothing."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return math.inf if norm is None or not self.engine.was_step_applied() else float(norm)


def build_trainer(
    recipe: Recipe, configs: Configs, ranks: Ranks, load: Load | None = None, stage: Stage | None = None
) -> Trainer:
    """`load` as in `build_model`; of a stage (None: the method's last one). Raises UserError if it trains nothing."""
    return Trainer(recipe, configs, ranks, load, stage or stages_of(recipe, configs)[-1])


def _check_auto(model: VisualLanguageModel, recipe: Recipe) -> None:
    """Ranks choose by their own micro-batches. Of a block that holds something trained ZeRO-3 gathers the parts as they
    are used, so that what one rank computes again and another does not would be other collectives. Raises UserError."""
    assert model.language is not None
    if len(model.whole_blocks()) < model.language.depth:
        raise UserError(
            f"training.recompute: auto chooses on every rank by itself, and under ZeRO-3 {recipe.method.name} with"
            " trained parts in the decoder's layers needs the same choice on all; take elementwise or another policy,"
            " or ds_configs/replicated.json"
        )


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
    # in every stage: what an earlier one has frozen may train in this one
    for block in model.language.layers if model.language is not None else ():
        set_z3_leaf_module(block, block in whole)
    zero = settings["zero_optimization"]
    if zero.get(PREFETCH) == "auto":
        sizes = [sum(math.prod(whole_shape(p)) for p in block.parameters()) for block in whole]
        zero[PREFETCH] = prefetched(max(sizes, default=0))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    return engine


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
