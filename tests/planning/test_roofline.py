"""The speed model of benchmarks/roofline.py: counts of LLaMA-13B, which a change that costs time or memory moves.

A count may become worse only with a reason that the commit states. What is measured on a machine is never here.
"""

import copy
from dataclasses import replace

import pytest
import torch

from benchmarks.roofline import CARDS, ROOT, SHORT, Layer, described, gpu_seconds, layer, tables, useful_flops
from dsmemvp.backbones import elementwise
from dsmemvp.backbones.kernels.shapes import operations
from dsmemvp.planning.gathers import simulate
from dsmemvp.planning.meter import Meter
from dsmemvp.planning.plan import POLICIES
from dsmemvp.planning.sharding import read_sharding
from dsmemvp.planning.trace import SUPERVISED, Trace, trace

RECIPE = ROOT / "recipes" / "scienceqa-13b.yaml"
SAMPLES, TOKENS = 16, 160
KEPT = {
    # bytes per token: what the policy names (backbones/recompute.py) and the input, in bf16, + 8 of dropout's keys.
    # More only if a layer keeps another value; then backbones/block_costs.py counts it too
    "none": 175_280,  # transformers' operations decide
    "elementwise": 116_904,
    "qkv": 86_184,
    "attention": 65_544,
    "mlp": 61_608,
    "qkv+mlp": 30_888,
    "full": 10_248,
}
KERNELS = {
    # (in torch's operations alone, with this package's kernels), forward and backward. 64 of them are products and sums
    # of the memory's gradient, 4 for each of 16 images; 14 mix dropout's keys. A new elementwise operation in the layer
    # moves both, one that is a kernel (kernels/shapes.py) the second by one
    "none": (266, 185),
    "elementwise": (259, 127),
    "qkv": (278, 133),
    "attention": (281, 136),
    "mlp": (267, 130),
    "qkv+mlp": (286, 136),
    "full": (289, 139),
}
MOVED = {
    # kB per token that kernels read and write: 317 M weights over 2,560 tokens are 248 of each of two passes, the
    # memory's float32 sums 307. Joining two elementwise kernels makes it less, copies more
    "none": 3884,
    "elementwise": 2284,
    "qkv": 2470,
    "attention": 2582,
    "mlp": 2491,
    "qkv+mlp": 2676,
    "full": 2789,
}
MFLOPS = {
    # per token, of products and attention: 4 x 317 M weights, the memory's branch 29, attention's whole squares 12; and
    # what a policy computes again. Nothing but another layer should move the first two
    "none": 1308.92,
    "elementwise": 1308.92,
    "qkv": 1466.20,
    "attention": 1521.91,
    "mlp": 1592.03,
    "qkv+mlp": 1749.32,
    "full": 1805.03,
}


def _traced(policy: str, layers: int, *more: str) -> Trace:
    recipe, configs = described(RECIPE, SAMPLES, 8, *more)
    language = copy.deepcopy(configs.language)
    language.num_hidden_layers = layers
    return trace(recipe, replace(configs, language=language), TOKENS, policy, "meta")


@pytest.fixture(scope="module")
def layers() -> dict[str, Layer]:
    small = "model.vision_shape=clip-tiny"  # the tower is not of the layer
    return {
        policy: layer(_traced(policy, SHORT + 1, small), _traced(policy, SHORT, small), SHORT + 1, SAMPLES * TOKENS)
        for policy in POLICIES
    }


@pytest.fixture(scope="module")
def whole() -> Trace:
    """Of all 40 layers and the tower, `elementwise`."""
    return _traced("elementwise", 40)


def test_a_layer_costs_what_it_did(layers):
    assert {policy: found.kept for policy, found in layers.items()} == KEPT
    assert {policy: (found.written_out, found.kernels) for policy, found in layers.items()} == KERNELS
    assert {policy: round(found.moved / 1e3) for policy, found in layers.items()} == MOVED
    assert {policy: round(found.flops / 1e6, 2) for policy, found in layers.items()} == MFLOPS


def test_a_layer_costs_no_more_than_the_goals(layers):
    assert layers["elementwise"].kept <= 118_200 and layers["full"].kept <= 10_700
    assert layers["full"].flops / layers["none"].flops <= 1.384


def test_a_packed_step_computes_little_that_it_could_do_without(whole):
    """What it executes and what is useful differ by known parts, to the last FLOP."""
    recipe, configs = described(RECIPE, SAMPLES)
    useful = useful_flops(recipe, configs, SAMPLES, TOKENS)
    assert whole.flops / useful <= 1.06
    assert whole.flops / useful == pytest.approx(1.0103, abs=5e-5)
    tokens, supervised, width, depth = SAMPLES * TOKENS, SAMPLES * SUPERVISED, 5120, 40
    pairs = SAMPLES * TOKENS * (TOKENS + 1) // 2
    without = SAMPLES * (TOKENS - SUPERVISED) * (TOKENS - SUPERVISED + 1) // 2
    # flash attention is counted with whole squares, 2 products forward and 5 backward, 4 of which are useful
    squares = (4 * depth + 10 * (depth - 1)) * SAMPLES * TOKENS**2
    attention = (squares - (4 + 12 * (depth - 2)) * pairs - 12 * (pairs - without)) * width
    tower = 22 * 2 * SAMPLES * 257**2 * 1024
    scores = ((depth - 1) * tokens + supervised) * 2 * 400 * width  # of the memory, computed again
    queries = 4 * (tokens - supervised) * width**2  # of the last layer, where nobody looks
    assert whole.flops - useful == attention + tower + scores + queries


def test_zero3_gathers_a_layer_twice_and_not_more(whole):
    """2 collectives a layer, less one where the backward begins, and under hpZ those of the vision tower: the files
    prefetch by the layer's size. More means that something gathers a layer in parts, or once more."""
    for name, most in (("zero3", 79), ("zero3_hpz", 83)):
        found = simulate(whole, read_sharding(ROOT / "ds_configs" / f"{name}.json"), 1)
        gathered = sum(whole.parameters[p].numel for p in found.micro_steps[0])
        assert gathered <= 2 * sum(p.numel for p in whole.parameters)
        assert found.collectives <= most


def test_the_host_calls_as_often_as_it_did(whole):
    """More calls are a slower step where the host is what a step waits for: small micro-batches, ZeRO-3."""
    assert sum(whole.operations.values()) <= 18_465


def test_time_follows_from_the_longest_of_each_kernel(whole):
    """With a card that computes infinitely fast bytes are left, and without those the number of kernels."""
    h100 = CARDS["h100"]
    all_bytes = sum(o.moved * n for o, n in whole.operations.items())
    slow = replace(h100, flops=1e99, bandwidth=h100.bandwidth / 1e6)
    assert gpu_seconds(whole.operations, slow) == pytest.approx(1e6 * all_bytes / h100.bandwidth, rel=1e-4)
    kernels = sum(n for o, n in whole.operations.items() if o.starts)
    assert gpu_seconds(whole.operations, replace(h100, flops=1e99, bandwidth=1e99)) == pytest.approx(2e-6 * kernels)
    assert gpu_seconds(whole.written_out, h100) > gpu_seconds(whole.operations, h100)


def test_the_tables_say_the_same_every_time_and_for_every_policy_and_sharding():
    recipe, configs = described(RECIPE, 2, 8, "model.language_shape=llama-tiny", "model.vision_shape=clip-tiny")
    first, again = (list(tables(recipe, configs, 100, 8, CARDS["a100"])) for _ in range(2))
    assert first == again
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in first[1][2:]]
    names = ("replicated", "zero3", "zero3_hpz")
    assert [row[:2] for row in cells] == [[policy, name] for policy in POLICIES for name in names]
    assert [line.split()[1] for line in first[0][2:]] == list(POLICIES)


# ---- what stands in for the kernels on the meta device

ROWS, WIDTH = 6, 8


def _arguments(dtype: torch.dtype) -> dict[str, tuple]:
    x, other, gradient = (torch.randn(1, ROWS, WIDTH, dtype=dtype) for _ in range(3))
    heads, turn = torch.randn(1, 2, ROWS, WIDTH, dtype=dtype), torch.randn(1, ROWS, WIDTH, dtype=dtype)
    keys, weight = torch.arange(ROWS), torch.randn(WIDTH, dtype=dtype)
    return {
        "rms_norm": (x, weight, 1e-6),
        "rms_norm_backward": (gradient, x, weight, 1e-6),
        "rotate": (heads, turn, turn),
        "silu_mul": (x, other),
        "silu_mul_backward": (gradient, x, other),
        "slot_activation": (x, keys, 0.1),
        "slot_activation_backward": (gradient, x, keys, 0.1),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stand_ins_give_what_the_functions_give_and_move_each_tensor_once(dtype):
    for name, arguments in _arguments(dtype).items():
        given = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]
        expected = getattr(elementwise, name)(*arguments)
        with Meter() as meter:
            found = getattr(operations, name)(*given)
        pairs = zip(*((t,) if isinstance(t, torch.Tensor) else t for t in (found, expected)), strict=True)
        sizes = 0
        for made, real in pairs:
            assert (made.shape, made.dtype) == (real.shape, real.dtype), name
            sizes += real.nbytes
        (operation,) = meter.operations
        assert operation.moved == sizes + sum(a.nbytes for a in arguments if isinstance(a, torch.Tensor)), name
        assert sum(meter.written_out.values()) > 1 and operation not in meter.written_out, name
