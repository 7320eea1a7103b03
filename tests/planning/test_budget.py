"""Choosing what layers keep within a budget: the counts against traces and real steps, and the fewest FLOPs."""

import copy
from dataclasses import replace
from itertools import combinations_with_replacement
from pathlib import Path

import pytest
from transformers import LlamaConfig, Qwen3Config

from benchmarks.measured_memory import held_and_peak
from dsmemvp.backbones.block_costs import attention_sizes, kept_bytes, layer_flops, recomputed_flops
from dsmemvp.backbones.recompute import KEPT
from dsmemvp.backbones.weights import configs_of_shapes
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.config.reading import read_recipe
from dsmemvp.model import loss_sum
from dsmemvp.planning.budget import ActivationBudget, Rest, activation_budget
from dsmemvp.planning.trace import Trace, example_batch, trace

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "scienceqa-13b.yaml"
TINY = ["model.language_shape=llama-tiny", "model.vision_shape=clip-tiny", "model.dtype=fp32"]
GIB = 2**30
GROUPED = {"num_key_value_heads": 2}
NONE = dict.fromkeys(KEPT, Rest(0, 0, 0))


@pytest.mark.parametrize("policy", KEPT)
@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (LlamaConfig, {}),
        (LlamaConfig, {"num_key_value_heads": 2}),
        (Qwen3Config, {"num_key_value_heads": 2, "head_dim": 16}),
    ],
)
def test_counts_of_a_layer_are_those_of_a_trace(policy, config, changes):
    recipe = read_recipe(RECIPE, [*TINY, "training.micro_batch=1"])
    sizes = {"vocab_size": 300, "hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4}

    def traced(layers: int, policy: str) -> Trace:
        language = config(**sizes | changes, num_hidden_layers=layers)
        return trace(recipe, replace(configs_of_shapes(recipe), language=language), 100, policy)

    language = config(**sizes | changes)
    more, less, plain_more, plain_less = (traced(n, kept) for kept in (policy, "elementwise") for n in (4, 3))
    keys = 8  # of dropout in MemVP's branch, int64
    assert more.held - less.held == 100 * (kept_bytes(language, policy, 4) + keys)
    again = (more.flops - less.flops) - (plain_more.flops - plain_less.flops)
    _, heads, _, head = attention_sizes(language)
    attention = 0 if "mixed" in KEPT[policy] else 2 * 2 * heads * head * 100**2  # scores, and what they weigh
    assert again == 100 * recomputed_flops(language, policy) + attention


def test_the_published_sizes():
    """LLaMA-13B in bf16: what is kept per token and layer, and what `full` computes again of 4 FLOPs per weight."""
    language = configs_of_shapes(read_recipe(RECIPE)).language
    assert kept_bytes(language, "elementwise", 2) <= 118_200 and kept_bytes(language, "full", 2) <= 10_700
    weights = 4 * 5120**2 + 3 * 5120 * 13824
    assert layer_flops(language) == 4 * weights
    assert recomputed_flops(language, "full") / (4 * weights) <= 0.39
    full = ActivationBudget(language, 2, 0, NONE).example(8)
    assert "2 elementwise, 38 full" in full and "37% of the layers' FLOPs again" in full


@pytest.mark.parametrize("gib", [3, 6, 10, 15, 20])
def test_no_mixture_of_three_policies_computes_less_again(gib):
    language = configs_of_shapes(read_recipe(RECIPE)).language
    short = copy.deepcopy(language)
    short.num_hidden_layers = 8
    budget = ActivationBudget(short, 2, gib * GIB // 6, NONE)
    choice = budget.choose(4096, 0)
    assert budget.peak(choice, 4096, 0) <= budget.budget

    def flops(policies):
        return sum(recomputed_flops(short, policy) for policy in policies)

    fitting = [
        mix
        for mix in combinations_with_replacement(KEPT, 6)
        if len(set(mix)) <= 3 and sum(kept_bytes(short, p, 2) for p in mix) * 4096 <= budget.budget
    ]
    assert flops(choice) == min(map(flops, fitting))


def test_13b_within_10_gib_at_4096_tokens_computes_little_again():
    language = configs_of_shapes(read_recipe(RECIPE)).language
    choice = ActivationBudget(language, 2, 10 * GIB, NONE).choose(4096, 0)
    weights = 4 * 5120**2 + 3 * 5120 * 13824
    assert sum(recomputed_flops(language, policy) for policy in choice) / (40 * 4 * weights) <= 0.175


@pytest.mark.parametrize(
    ("method", "shares"),
    [
        ([], (1.0, 0.8, 0.6, 0.5, 0.4)),
        # of MITP less can be computed again: its seven upper layers' part
        (["method.name=dvp", "method.layer=4", "vision.adapter_dim=0"], (1.0, 0.8, 0.6)),
        (["method.name=dvp", "method.adapter_ratio=4", "method.train_norms=true"], (1.0, 0.8, 0.6)),
        (["method.name=mitp", "method.text_points=[5,8,11]", "vision.adapter_dim=0"], (1.0, 0.8, 0.6)),
    ],
)
def test_real_steps_hold_what_was_counted(method, shares):
    recipe = read_recipe(RECIPE, [*TINY, "training.micro_batch=2", *method])
    configs = configs_of_shapes(recipe)
    configs.language.num_hidden_layers = 12
    whole = activation_budget(recipe, configs, 1 << 60)
    all_kept = whole.peak(whole.choose(600, 2), 600, 2)
    model = build_frozen(recipe, configs)
    add_trainables(model, recipe, configs)
    batch = example_batch(recipe, configs, model.method.reserved(), tokens=300)
    for share in shares:
        budget = replace(whole, budget=int(share * all_kept), chosen={})
        model.choose = budget.choose
        _, measured = held_and_peak(lambda: loss_sum(model(batch)[0], batch.targets).backward())
        counted = budget.peak(budget.choose(600, 2), 600, 2)
        assert measured == pytest.approx(counted, rel=0.05)
        assert counted <= budget.budget


def test_a_budget_holds_whichever_layer_a_search_takes():
    """A recipe's layer of 10 has few layers with a gradient, and layer 0 has all of them."""
    recipe = read_recipe(RECIPE, [*TINY, "training.micro_batch=2", "method.name=dvp", "method.layer=10"])
    configs = configs_of_shapes(recipe)
    configs.language.num_hidden_layers = 12
    whole = activation_budget(recipe, configs, 1 << 60)
    model = build_frozen(recipe, configs)
    add_trainables(model, recipe, configs)
    batch = example_batch(recipe, configs, model.method.reserved(), tokens=300)

    def measured() -> int:
        return held_and_peak(lambda: loss_sum(model(batch)[0], batch.targets).backward())[1]

    model.choose = whole.following(model.method)
    model.method.choose(0)
    budget = replace(whole, budget=int(0.7 * measured()), chosen={})
    model.choose = budget.following(model.method)
    for layer in (0, 3, 11):
        model.method.choose(layer)
        assert measured() <= 1.05 * budget.budget, layer


def test_nothing_fits_then_all_is_computed_again():
    language = configs_of_shapes(read_recipe(RECIPE)).language
    budget = ActivationBudget(language, 2, 1, NONE)
    choice = budget.choose(4096, 4)
    assert set(choice[1:-1]) == {"full"} and len(choice) == 40
    assert "this is over the budget, and no policy keeps less" in budget.example(4)
