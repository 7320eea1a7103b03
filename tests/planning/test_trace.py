"""What the run on fake tensors counts, against a real forward of the same model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.measured_memory import held_and_peak
from dsmemvp.backbones.recompute import KEPT
from dsmemvp.backbones.weights import configs_of_shapes
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.config.reading import read_recipe
from dsmemvp.model import loss_sum
from dsmemvp.planning.meter import Meter
from dsmemvp.planning.trace import example_batch, trace
from dsmemvp.stages import count

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "scienceqa-13b.yaml"
METHODS = {
    "memvp": [],
    "separable": ["method.name=memvp", "method.scores=separable", "method.dropout=0"],
    "input_space": [],
    "mitp": [],
    "dvp": ["method.layer=2", "method.adapter_ratio=8", "method.train_norms=true"],
}
TINY = ["model.language_shape=llama-tiny", "model.vision_shape=clip-tiny", "model.dtype=fp32", "training.micro_batch=2"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("policy", ["none", *KEPT])
def test_activations_are_what_a_real_step_allocates(method, policy):
    recipe = read_recipe(RECIPE, [*TINY, f"method.name={method}", *METHODS[method], f"training.recompute={policy}"])
    configs = configs_of_shapes(recipe)
    model = build_frozen(recipe, configs)
    add_trainables(model, recipe, configs)
    batch = example_batch(recipe, configs, model.method.reserved(), tokens=120)

    def forward() -> torch.Tensor:
        return loss_sum(model(batch)[0], batch.targets)

    found = trace(recipe, configs, 120, policy)
    held, _ = held_and_peak(forward)
    assert found.held == pytest.approx(held, rel=0.02)
    _, peak = held_and_peak(lambda: forward().backward())
    assert found.peak == pytest.approx(peak, rel=0.03)


def test_recomputing_holds_less_and_computes_more():
    recipe = read_recipe(RECIPE, TINY)
    none, full = (trace(recipe, configs_of_shapes(recipe), 120, policy) for policy in ("none", "full"))
    assert full.held < none.held / 2 and full.peak < 0.8 * none.peak
    # 6N instead of 4N per token, less down_proj, the last layer and what no gradient goes through
    assert 1.1 < full.flops / none.flops < 1.4


def test_a_frozen_language_model_costs_4n_flops_per_token_but_for_its_ends():
    recipe = read_recipe(RECIPE, ["model.language_shape=llama-7b", "training.micro_batch=1"])
    configs = configs_of_shapes(recipe)
    with_image = trace(recipe, configs, 200, "none").flops
    longer = trace(recipe, configs, 400, "none").flops
    language, slots = configs.language, recipe.method.slots
    width, inner, depth = language.hidden_size, language.intermediate_size, language.num_hidden_layers
    layer, memory = 4 * width**2 + 3 * width * inner, 2 * slots * width
    # 2 FLOPs per weight forward and 2 backward, none to the first layer's input; the last layer makes keys, values and
    # queries of all tokens, and the rest, as the head, of supervised ones; the memory's gradient is a product, too
    expected = 4 * layer * (depth - 1) - 2 * layer + 4 * 3 * width**2 + 6 * memory * (depth - 1)
    # attention: two products of 2 T^2 d FLOPs forward, five backward, none of these in the first layer
    attention = 2 * width * (400**2 - 200**2) * (2 * depth + 5 * (depth - 1))
    assert attention > 0.02 * 200 * expected
    assert longer - with_image == pytest.approx(200 * expected + attention, rel=0.005)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_counts_in_the_forward_and_in_the_backward(dtype):
    query = torch.randn(1, 4, 32, 8, dtype=dtype, requires_grad=True)
    product = 2 * 4 * 32 * 32 * 8
    with Meter() as meter:
        out = torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
        assert meter.flops == 2 * product
        out.sum().backward()
    assert meter.flops == 7 * product


def test_parameters_are_the_models_own():
    recipe = read_recipe(RECIPE, TINY)
    configs = configs_of_shapes(recipe)
    found = trace(replace(recipe), configs, 50, "none")
    trained, _ = count(recipe, configs)
    assert sum(p.numel for p in found.parameters if p.trained) == trained
    assert all(p.decayed is (".bias" not in p.name) for p in found.parameters if p.trained)
