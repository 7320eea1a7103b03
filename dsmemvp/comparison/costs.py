"""The costs of each contender, counted and not timed: the same on every machine."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.recompute import Policy
from dsmemvp.backbones.weights import read_configs
from dsmemvp.building import sizes_of
from dsmemvp.comparison.study import Contender
from dsmemvp.config.recipe import Recipe
from dsmemvp.config.stages import stage_recipe
from dsmemvp.errors import UserError
from dsmemvp.planning.cluster import Cluster
from dsmemvp.planning.plan import weigh, with_batch_for
from dsmemvp.planning.sharding import read_sharding
from dsmemvp.planning.trace import SUPERVISED, Trace, trace
from dsmemvp.prompts import build_method

GPUS = 8
"""Of the cluster on which the bytes that a step sends are counted, if the global batch has as many samples."""


@dataclass(frozen=True)
class Cost:
    trained: int
    """Parameters."""
    decoder_tokens: float
    """In the language model's sequence for a question with an image: the prompt and the places that a method reserves.
    What generation and its cache cost grows with it."""
    flops: float
    """Of a training step, per sample with an image, what is computed again included."""
    kept: float
    """Bytes between forward and backward, per sample with an image."""
    sent: float | None
    """Bytes that each of 8 GPUs sends per step, or of as many as there are samples in a global batch; None of a
    DeepSpeed file that `plan` does not know."""
    answer: float
    """FLOPs of a question with an image and an answer of SUPERVISED tokens, every token computed once, as with a
    key/value cache."""


def cost_of(contender: Contender, prompt_tokens: float) -> Cost:
    """Of the last stage and samples with prompts of this length, the places that the method reserves not counted. Every
    picture is looked at, also if a run trains on features that were computed before, which is no matter of the
    method."""
    whole, tokens = contender.recipe, round(prompt_tokens)
    whole = replace(whole, vision=replace(whole.vision, cache_features=""))
    recipe, configs = stage_recipe(whole, whole.method.stage_names()[-1]), read_configs(whole)
    policy = "elementwise" if recipe.training.recompute == "auto" else recipe.training.recompute
    reserved = reserved_places(recipe, configs)
    places = tokens + SUPERVISED + reserved
    alone, _ = with_batch_for(recipe, 1, places)
    found, micro = trace(alone, configs, tokens + SUPERVISED, policy), alone.training.micro_batch
    answer = found.forward_flops / micro
    if not contender.trains:
        return Cost(0, tokens, 0.0, 0.0, 0.0, answer)
    trained = sum(parameter.numel for parameter in found.parameters if parameter.trained)
    sent = _sent(recipe, found, policy, places)
    return Cost(trained, tokens + reserved, found.flops / micro, found.held / micro, sent, answer)


def _sent(recipe: Recipe, found: Trace, policy: Policy, places: int) -> float | None:
    try:
        sharding = read_sharding(Path(recipe.training.deepspeed))
    except UserError:  # a run may have settings that are not planned
        return None
    gpus = min(GPUS, recipe.training.global_batch)
    shared, _ = with_batch_for(recipe, gpus, places)
    steps = shared.training.micro_steps(gpus)
    return weigh(found, sharding, policy, Cluster(gpus, gpus), steps).traffic.sent_per_gpu()


def reserved_places(recipe: Recipe, configs: Configs) -> int:
    """In the sequence of a sample with an image."""
    with torch.device("meta"):
        method = build_method(recipe.method, sizes_of(configs, recipe.method))
    return sum(places.count for places in method.reserved())
