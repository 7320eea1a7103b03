"""Recipe + cluster -> every sharding choice with its memory, traffic and time, and the one to take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.recompute import KEPT, Policy
from dsmemvp.backbones.weights import configs_of_shapes, read_configs
from dsmemvp.building import sizes_of
from dsmemvp.config.recipe import Recipe
from dsmemvp.config.stages import stage_recipe
from dsmemvp.counting import counted
from dsmemvp.errors import UserError
from dsmemvp.planning.budget import ActivationBudget, activation_budget
from dsmemvp.planning.budget import Choice as Policies
from dsmemvp.planning.cluster import Cluster
from dsmemvp.planning.deepspeed_settings import deepspeed_settings
from dsmemvp.planning.duration import Duration, duration
from dsmemvp.planning.gathers import simulate
from dsmemvp.planning.memory import RESERVE, Memory, memory
from dsmemvp.planning.sharding import Sharding, read_sharding
from dsmemvp.planning.trace import SUPERVISED, Trace, trace
from dsmemvp.planning.traffic import Traffic, traffic
from dsmemvp.prompts import build_method, method_class
from dsmemvp.prompts.interface import Stage
from dsmemvp.stages import stages_of

SAME, SAME_SECONDS = 0.05, 1e-3
"""Steps whose estimates differ by less than this share of the fastest, or by less than this time, count as equally
fast: starting the kernels and collectives of a step, which is not estimated, takes about as long."""
MOST_PLACES, MOST_MICRO_STEPS = 2**22, 10_000
"""Text tokens of a micro-batch and micro-steps of a step that are planned for; both are gone through one by one."""
MUCH_ROUNDING = 0.2
"""Share of pinned host memory lost in gaps that is worth a note."""
POLICIES: tuple[Policy, ...] = ("none", *KEPT)
"""From the one that keeps most to the one that computes most again."""


@dataclass(frozen=True)
class Choice:
    """A sharding under one recompute policy."""

    sharding: Sharding
    recompute: Policy | Literal["auto"]
    memory: Memory
    traffic: Traffic
    duration: Duration

    def fits(self, cluster: Cluster) -> bool:
        return self.memory.gpu + RESERVE <= cluster.gpu_memory


@dataclass(frozen=True)
class Plan:
    cluster: Cluster
    recipe: Recipe
    """With the batch sizes that were planned with."""
    choices: tuple[Choice, ...]
    """One per sharding: the recipe's recompute policy if it fits, else the first one that does and keeps less; of
    `auto` the mixture over layers that a run takes for the planned micro-batch."""
    best: Choice | None
    """The simplest of the fastest that fit."""
    notes: tuple[str, ...]
    """What had to be changed or left out."""
    stage: str = ""
    """Of a method that trains in several."""


def compare(recipe: Recipe, clusters: Sequence[Cluster], tokens: int) -> list[Plan]:
    """A plan for each stage and cluster, with the shardings of all DeepSpeed files beside the recipe's. `tokens`: text
    tokens per sample; every sample is taken to have an image, where the stage sees any. Raises UserError."""
    if tokens <= SUPERVISED:
        raise UserError(f"--tokens: {tokens} text tokens do not hold the {SUPERVISED} of the target and a prompt")
    if not method_class(recipe.method.name).trainable:
        raise UserError(
            f"method.name: {recipe.method.name!r} has no trainable parameters; there is no training to plan"
        )
    shapes = recipe.model.language_shape and recipe.model.vision_shape
    configs = configs_of_shapes(recipe) if shapes else read_configs(recipe)
    stages = stages_of(recipe, configs)
    plans = []
    for stage in stages:
        found = _of_stage(stage_recipe(recipe, stage.name), configs, clusters, tokens, stage)
        plans += [replace(plan, stage=stage.name) for plan in found] if len(stages) > 1 else found
    return plans


def _of_stage(recipe: Recipe, configs: Configs, clusters: Sequence[Cluster], tokens: int, stage: Stage) -> list[Plan]:
    shardings, problems = shardings_beside(recipe)
    plans = []

    @cache
    def traced(micro_batch: int, policy: Policy | Policies) -> Trace:
        training = replace(recipe.training, micro_batch=micro_batch)
        return trace(replace(recipe, training=training), configs, tokens, policy, stage=stage)

    with torch.device("meta"):
        method = build_method(recipe.method, sizes_of(configs, recipe.method))
    method.begin_stage(stage)
    places = tokens + sum(reserved.count for reserved in method.reserved())
    budgeted = recipe.training.recompute == "auto" and stage.decoder
    auto = activation_budget(recipe, configs, 0, stage) if budgeted else None

    for cluster in clusters:
        fitted, notes = with_batch_for(recipe, cluster.gpus, places)
        micro_batch = fitted.training.micro_batch
        _check_work(fitted, cluster.gpus, tokens)
        deepspeed_settings(fitted, cluster.gpus)  # what a run would refuse
        notes += _no_gradient(method.first_block(), configs) if stage.decoder else []
        within = partial(_within, auto, micro_batch, places) if auto is not None else None
        plan = partial(_plan, fitted, partial(traced, micro_batch), cluster, shardings, (*notes, *problems))
        plans.append(plan(within))
    return plans


def _within(budget: ActivationBudget, samples: int, places: int, most: int) -> Policies:
    """Of each layer, as a run chooses them for so many samples of so many places each, in `most` bytes."""
    return replace(budget, budget=most, chosen={}).choose(samples * places, samples)


def _no_gradient(first: int, configs: Configs) -> list[str]:
    """That lower blocks keep nothing, if it is so."""
    if first == 0:
        return []
    return [
        f"No gradient passes below block {first} of the language model's {configs.language.num_hidden_layers}: the"
        f" {first} below keep no activations and have no backward, which is counted"
    ]


def _check_work(recipe: Recipe, gpus: int, tokens: int) -> None:
    training = recipe.training
    if training.micro_batch * tokens > MOST_PLACES:
        raise UserError(
            f"--tokens: {tokens} x training.micro_batch = {training.micro_batch} are over {MOST_PLACES:,} tokens"
        )
    micro_steps = training.micro_steps(gpus)
    if micro_steps > MOST_MICRO_STEPS:
        raise UserError(
            f"training.global_batch: {training.global_batch} makes {micro_steps} micro-steps on {counted(gpus, 'GPU')}"
            f" with training.micro_batch = {training.micro_batch}, at most {MOST_MICRO_STEPS:,} are planned"
        )


def _plan(
    recipe: Recipe,
    traced: Callable[[Policy | Policies], Trace],
    cluster: Cluster,
    shardings: Sequence[Sharding],
    notes: tuple[str, ...],
    within: Callable[[int], Policies] | None,
) -> Plan:
    """`within`: under `recompute: auto`, what is chosen for a budget in bytes."""
    training = recipe.training
    micro_steps = training.micro_steps(cluster.gpus)
    choices = []
    for sharding in shardings:
        if training.recompute == "auto":
            assert within is not None
            beside = weigh(traced("full"), sharding, "auto", cluster, micro_steps).memory
            left = cluster.gpu_memory - RESERVE - (beside.gpu - beside.activations)
            found = traced(within(int(training.activation_budget * 2**30 or left)))
            choices.append(weigh(found, sharding, "auto", cluster, micro_steps))
            continue
        policies = POLICIES[POLICIES.index(training.recompute) :]
        weighed = (weigh(traced(policy), sharding, policy, cluster, micro_steps) for policy in policies)
        choices.append(next(c for c in weighed if c.fits(cluster) or c.recompute == policies[-1]))
    fitting = [c for c in choices if c.fits(cluster)]
    fastest = min((c.duration.step for c in fitting), default=0.0)
    enough = max(fastest * (1 + SAME), fastest + SAME_SECONDS)
    best = min((c for c in fitting if c.duration.step <= enough), key=_complexity, default=None)
    return Plan(cluster, recipe, tuple(choices), best, (*notes, *_gaps(choices)))


def _gaps(choices: Sequence[Choice]) -> list[str]:
    notes = []
    for choice in choices:
        host, gaps = choice.memory.host_per_node, choice.memory.host_gaps
        if gaps > MUCH_ROUNDING * (host - gaps):
            notes.append(
                f"{choice.sharding.name}: torch rounds pinned blocks up to powers of two, which makes"
                f" {(host - gaps) / 2**30:.1f} GiB of host memory per node {host / 2**30:.1f} GiB; with torch 2.13,"
                " PYTORCH_ALLOC_CONF=pinned_max_round_threshold_mb:1 rounds none above 1 MiB"
            )
    return notes


def _complexity(choice: Choice) -> tuple[bool, bool, bool, float]:
    """Whole weights on every GPU come first, then flat ZeRO-3, its second partition, and host memory."""
    sharding = choice.sharding
    return sharding.offload, sharding.hpz, sharding.stage == 3, choice.duration.step


def weigh(
    found: Trace, sharding: Sharding, recompute: Policy | Literal["auto"], cluster: Cluster, micro_steps: int
) -> Choice:
    """One sharding; `found` is the trace under that recompute policy."""
    gathers = simulate(found, sharding, micro_steps)
    sent = traffic(found, sharding, cluster, gathers)
    seconds = duration(found.flops * micro_steps, sent, cluster)
    return Choice(sharding, recompute, memory(found, sharding, cluster, gathers), sent, seconds)


def shardings_beside(recipe: Recipe) -> tuple[list[Sharding], list[str]]:
    """Those of all DeepSpeed files in the folder of the recipe's own, and what is wrong with those left out. Raises
    UserError if the recipe's own cannot be planned."""
    own = Path(recipe.training.deepspeed)
    found, problems = [read_sharding(own)], []
    for path in own.parent.glob("*.json"):
        try:
            found += [read_sharding(path)] if path.name != own.name else []
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return sorted(found, key=lambda s: s.name), sorted(problems)


def with_batch_for(recipe: Recipe, gpus: int, places: int) -> tuple[Recipe, list[str]]:
    """The recipe as it runs on so many GPUs: with the samples that a micro-batch holds on average, of `places` tokens
    each, those included that the method reserves; with a larger global batch if some GPU would have nothing to do."""
    training, notes = recipe.training, []
    global_batch = max(training.global_batch, gpus)
    most = max(1, training.micro_tokens // places) if training.micro_tokens else training.micro_batch
    micro_steps = -(-global_batch // (most * gpus))
    if global_batch != training.global_batch:
        rate = training.learning_rate * global_batch / training.global_batch
        notes.append(
            f"{counted(gpus, 'GPU')} cannot share a global batch of {training.global_batch}; planned with"
            f" training.global_batch={global_batch}, which needs training.learning_rate={rate:g} if the rate goes with"
            " the batch"
        )
    micro_batch = -(-global_batch // (micro_steps * gpus))
    return replace(recipe, training=replace(training, global_batch=global_batch, micro_batch=micro_batch)), notes
