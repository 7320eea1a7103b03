"""Which layers keep what, so that a micro-batch's activations fit a budget and as few FLOPs as possible are computed
again. Chosen anew for every micro-batch, since its tokens and images decide; gradients are the same either way.

What layers keep is counted (backbones/block_costs.py). The rest of a micro-step's peak (vision tower, ends of the
decoder, logits, what is alive for a moment) is a linear function of tokens and images, fitted to traces of a decoder of
three layers, for each policy of the middle one: what is computed again is alive for a moment, too.
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations_with_replacement
from typing import Any

import torch

from dsmemvp.backbones.block_costs import kept_bytes, layer_flops, recomputed_flops
from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.recompute import KEPT, Policy
from dsmemvp.building import sizes_of
from dsmemvp.config.recipe import Recipe
from dsmemvp.dtypes import NAMED
from dsmemvp.planning.trace import Trace, trace
from dsmemvp.prompts import VisualPrompt, build_method, method_class
from dsmemvp.prompts.interface import Stage
from dsmemvp.stages import trainable_shapes

LIGHT: Policy = "elementwise"
Choice = tuple[Policy, ...]
"""Of each decoder layer."""


@dataclass(frozen=True)
class Rest:
    """Bytes of a micro-step's peak beside what the middle layers keep."""

    constant: float
    per_token: float
    per_image: float

    def bytes(self, tokens: int, images: int) -> float:
        return self.constant + self.per_token * tokens + self.per_image * images


@dataclass
class ActivationBudget:
    config: Any
    """Of the language model"""
    item: int
    """Bytes of an element"""
    budget: int
    """Bytes"""
    rests: Mapping[Policy, Rest]
    """When the backward is in a layer of that policy"""
    first: int = 0
    """The first layer that a gradient passes through; those below keep nothing. Of the recipe: see `following`"""
    own: float = 0.0
    """Bytes per token that a layer keeps for the method, such as for adapters, whatever the policy"""
    chosen: dict[tuple[int, int], Choice] = field(default_factory=dict)

    def peak(self, choice: Choice, tokens: int, images: int) -> float:
        """Bytes that a micro-step holds at most. The last layer computes few tokens and belongs to the rest, as the
        first one with a gradient, whose input has none."""
        alive, peak = 0.0, self.rests[LIGHT].bytes(tokens, images)
        for policy in choice[self.first + 1 : -1]:
            alive += tokens * self._kept(policy)
            peak = max(peak, self.rests[policy].bytes(tokens, images) + alive)
        return peak

    def choose(self, tokens: int, images: int) -> Choice:
        """The fewest FLOPs that fit, or `full` everywhere if nothing does. Layers that compute more again come first:
        the backward begins with the last ones, when all that is kept is alive."""
        if (tokens, images) not in self.chosen:
            for rest in sorted(rest.bytes(tokens, images) for rest in self.rests.values()):
                self.chosen[tokens, images] = found = self._search(tokens, self.budget - rest)
                if self.peak(found, tokens, images) <= self.budget:
                    break
        return self.chosen[tokens, images]

    def following(self, method: VisualPrompt) -> Callable[[int, int], Choice]:
        """`choose` for a method whose first layer with a gradient may move from step to step, as a search moves it."""
        of_first: dict[int, ActivationBudget] = {self.first: self}

        def choose(tokens: int, images: int) -> Choice:
            first = method.first_block()
            if first not in of_first:
                of_first[first] = replace(self, first=first, chosen={})
            return of_first[first].choose(tokens, images)

        return choose

    def example(self, samples: int, tokens: int = 128) -> str:
        """What is chosen for so many samples with an image and so many tokens, in words."""
        choice = self.choose(samples * tokens, samples)
        with_gradient = choice[self.first :]
        layers = ", ".join(f"{number} {policy}" for policy, number in Counter(with_gradient).items())
        again = sum(recomputed_flops(self.config, policy) for policy in with_gradient)
        share = again / (len(choice) * layer_flops(self.config))
        peak = self.peak(choice, samples * tokens, samples)
        over = "" if peak <= self.budget else "; this is over the budget, and no policy keeps less"
        return (
            f"{self.budget / 2**30:.1f} GiB; for {samples} x {tokens} tokens with images layers keep {layers}:"
            f" {peak / 2**30:.2f} GiB, {share:.0%} of the layers' FLOPs again{over}"
        )

    def _kept(self, policy: Policy) -> float:
        """Bytes that a layer keeps per token."""
        return kept_bytes(self.config, policy, self.item) + self.own

    def _search(self, tokens: int, room: float) -> Choice:
        policies: list[Policy] = sorted(KEPT, key=lambda policy: recomputed_flops(self.config, policy))
        with_gradient = self.config.num_hidden_layers - self.first
        layers = max(0, with_gradient - 2)
        room /= max(tokens, 1)
        size = {policy: self._kept(policy) for policy in policies}
        flops = {policy: recomputed_flops(self.config, policy) for policy in policies}
        best: tuple[float, list[tuple[Policy, int]]] | None = None
        for light, middle, heavy in combinations_with_replacement(policies, 3):
            for few in range(layers + 1) if middle != light else (0,):
                # as many light ones as fit beside `few` middle ones
                left = room - few * size[middle] - (layers - few) * size[heavy]
                gain = size[light] - size[heavy]
                most = (layers - few if left >= 0 else -1) if gain <= 0 else int(left // gain)
                if most < 0:
                    continue
                lights = min(most, layers - few)
                mix = [(heavy, layers - few - lights), (middle, few), (light, lights)]
                cost = sum(flops[policy] * number for policy, number in mix)
                if best is None or cost < best[0]:
                    best = cost, mix
        middle_layers = [policy for policy, number in best[1] for _ in range(number)] if best else ["full"] * layers
        ends: list[Policy] = [LIGHT] * min(2, with_gradient)
        return (*[LIGHT] * self.first, *ends[:1], *middle_layers, *ends[1:])


def activation_budget(recipe: Recipe, configs: Configs, budget: int, stage: Stage | None = None) -> ActivationBudget:
    """Traces eighteen micro-steps of a decoder of three layers, or twenty if layers train something: some seconds at
    13B."""
    item = NAMED[recipe.model.dtype].itemsize
    sizes = sizes_of(configs, recipe.method)
    with torch.device("meta"):
        first = build_method(recipe.method, sizes).first_block()

    def short(layers: int, policy: Policy, samples: int, tokens: int) -> Trace:
        language = copy.deepcopy(configs.language)
        language.num_hidden_layers = layers
        settings = method_class(recipe.method.name).shortened(recipe.method, sizes, layers)
        sized = replace(recipe, method=settings, training=replace(recipe.training, micro_batch=samples))
        policies: list[Policy] = [LIGHT, *[policy] * (layers - 2), LIGHT]
        return trace(sized, replace(configs, language=language), tokens, policies, stage=stage)

    own = 0.0
    if any(name.startswith("language.layers.") for name in trainable_shapes(recipe, configs)):
        more = (short(4, LIGHT, 1, 128).held - short(3, LIGHT, 1, 128).held) / 128
        own = more - kept_bytes(configs.language, LIGHT, item)

    def beside(policy: Policy, samples: int, tokens: int) -> float:
        kept = kept_bytes(configs.language, policy, item) + own
        return short(3, policy, samples, tokens).peak - kept * samples * tokens

    def fitted(policy: Policy) -> Rest:
        one, longer, two = beside(policy, 1, 128), beside(policy, 1, 512), beside(policy, 2, 128)
        per_token = (longer - one) / 384
        per_image = two - one - 128 * per_token
        return Rest(one - 128 * per_token - per_image, per_token, per_image)

    return ActivationBudget(configs.language, item, budget, {policy: fitted(policy) for policy in KEPT}, first, own)
