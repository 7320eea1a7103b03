"""What a step of MITP and of DVP holds and computes: blocks below MITP's first points, and below DVP's layer, keep
nothing and have no backward. Bytes and FLOPs are counted, and compared exactly."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig

from dsmemvp.backbones.block_costs import kept_bytes
from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.weights import configs_of_shapes
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.config.reading import read_recipe
from dsmemvp.model import loss_sum
from dsmemvp.planning.budget import activation_budget
from dsmemvp.planning.trace import example_batch, trace

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "scienceqa-13b.yaml"
TOKENS, SAMPLES = 60, 2
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
LANGUAGE = {**SIZES, "vocab_size": 300}
VISION = {**SIZES, "image_size": 32, "patch_size": 8}


def _configs(text_below: int, vision_below: int) -> Configs:
    """With six blocks of the decoder and four of the vision tower above these. CLIP's last block is not built."""
    return Configs(
        LlamaConfig(**LANGUAGE, num_hidden_layers=6 + text_below),
        CLIPVisionConfig(**VISION, num_hidden_layers=5 + vision_below),
    )


def _recipe(text_below: int, vision_below: int, policy: str):
    points = {"text": [0 + text_below, 3 + text_below, 5 + text_below], "vision": [vision_below, 3 + vision_below]}
    settings = ["method.name=mitp", "vision.adapter_dim=0", *(f"method.{m}_points={at}" for m, at in points.items())]
    more = ["model.dtype=fp32", f"training.micro_batch={SAMPLES}", f"training.recompute={policy}", "method.rank=8"]
    return read_recipe(RECIPE, [*settings, *more])


def _backward_flops(text_below: int, vision_below: int) -> int:
    recipe, configs = _recipe(text_below, vision_below, "none"), _configs(text_below, vision_below)
    model = build_frozen(recipe, configs)
    add_trainables(model, recipe, configs)
    batch = example_batch(recipe, configs, model.method.reserved(), TOKENS)
    loss = loss_sum(model(batch)[0], batch.targets)
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("policy", ["none", "elementwise", "full"])
def test_blocks_below_the_first_points_keep_nothing(policy):
    held = [trace(_recipe(*below, policy), _configs(*below), TOKENS, policy).held for below in ((0, 0), (7, 0), (0, 5))]
    assert held[0] == held[1] == held[2]


def test_blocks_below_the_first_points_have_no_backward():
    flops = [_backward_flops(*below) for below in ((0, 0), (7, 0), (0, 5))]
    assert flops[0] == flops[1] == flops[2] > 0


def test_a_gradient_begins_at_the_first_points():
    recipe, configs = _recipe(4, 3, "none"), _configs(4, 3)
    model = build_frozen(recipe, configs)
    add_trainables(model, recipe, configs)
    batch = example_batch(recipe, configs, model.method.reserved(), TOKENS)
    found: dict[str, list[bool]] = {"decoder": [], "vision": []}
    for tower, part in (("decoder", model.language), ("vision", model.vision)):
        for block in part.layers:
            block.register_forward_hook(lambda _, given, out, tower=tower: found[tower].append(out.requires_grad))
    model(batch)
    assert found == {"decoder": [False] * 4 + [True] * 6, "vision": [False] * 3 + [True] * 4}


def test_what_a_budget_counts_is_the_upper_blocks_alone():
    """Per token; the first of them and the last belong to the rest."""
    recipe, configs = _recipe(7, 0, "auto"), _configs(7, 0)
    budget = activation_budget(recipe, configs, 1 << 60)
    choice = budget.choose(1000, 0)
    assert len(choice) == 13 and budget.first == 7
    kept = budget.peak(choice, 1000, 0) - budget.rests["elementwise"].bytes(1000, 0)
    assert kept == 4 * 1000 * kept_bytes(configs.language, "elementwise", 4)
    assert set(replace(budget, budget=1, chosen={}).choose(1000, 0)[8:-1]) == {"full"}


def test_at_13b_it_is_about_half_of_what_the_whole_decoder_keeps():
    """Of 40 blocks 20, and of the vision tower's 23 the last 10."""
    found = {}
    for method in ("mitp", "memvp"):
        settings = [f"method.name={method}", "vision.adapter_dim=0", "training.micro_batch=1"]
        recipe = read_recipe(RECIPE, settings)
        found[method] = trace(recipe, configs_of_shapes(recipe), 400, "elementwise")
    assert found["mitp"].held < 0.6 * found["memvp"].held
    assert found["mitp"].flops < 0.85 * found["memvp"].flops


@pytest.mark.parametrize("layer", [0, 4])
def test_dvp_computes_at_most_a_tenth_more_than_memvp(layer):
    """One token more, and a cross-attention, in the place of a memory; all else is the same. At layer 0 no block is
    without a backward. Samples are short ones of ScienceQA, in which one token is most."""
    dvp = ["method.name=dvp", f"method.layer={layer}"]
    flops = []
    for method in (dvp, ["method.name=memvp"]):
        recipe = read_recipe(RECIPE, [*method, "vision.adapter_dim=0", "training.micro_batch=1"])
        flops.append(trace(recipe, configs_of_shapes(recipe), 60, "none").flops)
    assert 0.8 * flops[1] < flops[0] < 1.1 * flops[1]


def test_blocks_below_dvp_s_layer_keep_nothing():
    def held(below: int) -> int:
        settings = ["method.name=dvp", f"method.layer={below}", "method.width=32", "method.heads=2"]
        more = ["vision.adapter_dim=0", "model.dtype=fp32", f"training.micro_batch={SAMPLES}"]
        recipe = read_recipe(RECIPE, [*settings, *more, "training.recompute=elementwise"])
        return trace(recipe, _configs(below, 0), TOKENS, "elementwise").held

    assert held(1) == held(5)
