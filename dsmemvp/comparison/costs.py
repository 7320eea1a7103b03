"""The costs of each contender, counted and not timed: the same on every machine."""

from dataclasses import dataclass
from pathlib import Path

import torch

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.weights import read_configs
from dsmemvp.comparison.study import Contender
from dsmemvp.config.recipe import Recipe
from dsmemvp.model import sizes_of
from dsmemvp.planning.cluster import Cluster
from dsmemvp.planning.plan import weigh
from dsmemvp.planning.sharding import read_sharding
from dsmemvp.planning.trace import SUPERVISED, trace
from dsmemvp.prompts import build_method

GPUS = 8
"""Of the cluster on which the bytes that a step sends are counted."""


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
    sent: float
    """Bytes that each of 8 GPUs sends per step."""
    answer: float
    """FLOPs of a question with an image and an answer of SUPERVISED tokens, every token computed once, as with a
    key/value cache."""


def cost_of(contender: Contender, prompt_tokens: float) -> Cost:
    """Of samples with prompts of this length, the places that the method reserves not counted."""
    recipe, tokens = contender.recipe, round(prompt_tokens)
    policy = "elementwise" if recipe.training.recompute == "auto" else recipe.training.recompute
    configs = read_configs(recipe)
    found = trace(recipe, configs, tokens + SUPERVISED, policy)
    cluster, sharding = Cluster(GPUS, GPUS), read_sharding(Path(recipe.training.deepspeed))
    micro = recipe.training.micro_batch
    answer = found.forward_flops / micro
    if not contender.trains:
        return Cost(0, tokens, 0.0, 0.0, 0.0, answer)
    sent = weigh(found, sharding, policy, cluster, recipe.training.micro_steps(GPUS)).traffic.sent_per_gpu()
    reserved = reserved_places(recipe, configs)
    trained = sum(parameter.numel for parameter in found.parameters if parameter.trained)
    return Cost(trained, tokens + reserved, found.flops / micro, found.held / micro, sent, answer)


def reserved_places(recipe: Recipe, configs: Configs) -> int:
    """In the sequence of a sample with an image."""
    with torch.device("meta"):
        method = build_method(recipe.method, sizes_of(configs, recipe.method))
    return sum(places.count for places in method.reserved())
