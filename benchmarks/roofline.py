"""What a training step of memvp costs on a GPU that is not at hand: counted on the meta device, estimated from counts.

    python benchmarks/roofline.py --recipe recipes/scienceqa-13b.yaml --card h100 --ranks 8

It computes the same numbers every time and needs a minute. `planning/trace.py` takes one micro-step of the recipe's
model as a GPU would (attention of variable lengths, kernels of this package in place of the elementwise operations):
`--samples` samples with an image each and `--tokens` text tokens.

Counted, per micro-step and rank:

    kept        bytes per token and layer that are held between forward and backward, by a decoder layer in the middle
    useful      FLOPs of matrix products and attention that a step cannot do without (`useful_flops`), and executed ones
    kernels     calls that start work on the GPU, per layer in the middle: in torch's operations alone, and as it is
    moved       bytes that these read and write, each time anew
    calls       of ATen by the host, views and allocations included
    gathers     collectives that gather weights, and what they bring in units of the model's size (planning/gathers.py)

A layer's numbers are differences: of the whole model and of one with three layers, over the layers between.

Estimated, by the slowest of four, none of which waits for another:

    GPU      the sum over kernels of the longest of: FLOPs at MATMUL of the card's speed; bytes at its memory's; START
    host     HOST_CALL for every call, and under ZeRO-3 HOOK for every time that DeepSpeed fetches or releases a module
    links    gathers over NVLink and the network, as in `dsmemvp plan`
    after    gradients and updated values, which are added

"share" is useful FLOPs over time, of the card's speed. A change of the model or of DeepSpeed that makes a count worse
fails tests/planning/test_roofline.py; the times are predictions that no GPU has confirmed.
"""

import argparse
import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from dsmemvp.backbones.block_costs import attention_sizes
from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.recompute import Policy
from dsmemvp.backbones.weights import configs_of_shapes
from dsmemvp.config.reading import read_recipe
from dsmemvp.config.recipe import Recipe
from dsmemvp.markdown import table
from dsmemvp.planning.cluster import Cluster
from dsmemvp.planning.duration import duration
from dsmemvp.planning.gathers import simulate
from dsmemvp.planning.meter import Operation
from dsmemvp.planning.plan import POLICIES
from dsmemvp.planning.sharding import read_sharding
from dsmemvp.planning.trace import SUPERVISED, Trace, trace
from dsmemvp.planning.traffic import traffic

ROOT = Path(__file__).parent.parent
SHORT = 3
"""Layers of the short model: the first and the last are unlike the others."""


@dataclass(frozen=True)
class Card:
    flops: float
    """FLOP/s that 16-bit matrix products can reach"""
    bandwidth: float
    """Bytes/s that its memory can reach"""


CARDS = {"h100": Card(790e12, 3.0e12), "h200": Card(790e12, 4.3e12), "a100": Card(249e12, 1.83e12)}
"""H100 (SXM): as reported, 80 % of the data sheet's 989 TFLOP/s and 90 % of its 3.35 TB/s; the others by the same
shares of theirs."""
MATMUL = 0.75
"""Share of the card's speed that products of a layer's sizes reach."""
START = 2e-6
"""Seconds that a kernel takes at least."""
HOST_CALL = 4e-6
"""Seconds of the host per call: 93 ms were measured for a micro-step of 13B on a CPU core, which is about 25,000."""
HOOK = 1e-4
"""Seconds of the host per module that ZeRO-3 fetches or releases: 154 ms were measured for 1,555."""


@dataclass(frozen=True)
class Layer:
    """Of one decoder layer in the middle and micro-step."""

    kept: float
    """Bytes per token"""
    kernels: int
    written_out: int
    """Kernels in torch's operations alone"""
    moved: float
    """Bytes read and written per token"""
    flops: float
    """Per token"""


def layer(whole: Trace, short: Trace, layers: int, tokens: int) -> Layer:
    """From the traces of a model with `layers` and of one with SHORT layers; `tokens` of all samples."""
    between = layers - SHORT

    def each(more: int, less: int) -> int:
        assert (more - less) % between == 0, "layers in the middle are not alike"
        return (more - less) // between

    return Layer(
        each(whole.held, short.held) / tokens,
        each(_started(whole.operations), _started(short.operations)),
        each(_started(whole.written_out), _started(short.written_out)),
        each(_moved(whole.operations), _moved(short.operations)) / tokens,
        each(whole.flops, short.flops) / tokens,
    )


def _started(operations: Counter[Operation]) -> int:
    return sum(times for operation, times in operations.items() if operation.starts)


def _moved(operations: Counter[Operation]) -> int:
    return sum(operation.moved * times for operation, times in operations.items())


def gpu_seconds(operations: Counter[Operation], card: Card) -> float:
    return sum(
        times * max(operation.flops / (card.flops * MATMUL), operation.moved / card.bandwidth, START)
        for operation, times in operations.items()
        if operation.starts
    )


def useful_flops(recipe: Recipe, configs: Configs, samples: int, tokens: int) -> int:
    """Of one micro-step of memvp, from the sizes alone. A frozen product is run forward and once backward, a trained
    one twice backward; attention's two products over the pairs that a causal mask leaves, and four backward. Nothing
    goes back through the first layer but to the memory; the last computes queries and what follows at supervised
    tokens. A CLIP tower's gradient stops at its first block."""
    text = _decoder_flops(recipe, configs.language, samples, tokens)
    return text + _tower_flops(recipe, configs, samples)


def _decoder_flops(recipe: Recipe, language: Any, samples: int, tokens: int) -> int:
    method: Any = recipe.method
    width, heads, shared, head = attention_sizes(language)
    all_rows, supervised, depth = samples * tokens, samples * SUPERVISED, language.num_hidden_layers
    pairs = samples * tokens * (tokens + 1) // 2
    last_pairs = pairs - samples * (tokens - SUPERVISED) * (tokens - SUPERVISED + 1) // 2

    def frozen(rows: int) -> int:
        """Forward products of a layer, all but keys and values at `rows` places."""
        at_rows = 2 * heads * head * width + 3 * width * language.intermediate_size
        return 2 * (all_rows * 2 * width * shared * head + rows * at_rows)

    def memory(rows: int) -> int:
        """One product of the branch."""
        return 2 * rows * method.slots * width

    attended = 2 * heads * head
    first = frozen(all_rows) + 2 * attended * pairs + 5 * memory(all_rows)
    middle = 2 * frozen(all_rows) + 6 * attended * pairs + 6 * memory(all_rows)
    last = 2 * frozen(supervised) + 6 * attended * last_pairs + 6 * memory(supervised)
    return first + (depth - 2) * middle + last + 2 * 2 * supervised * width * language.vocab_size


def _tower_flops(recipe: Recipe, configs: Configs, images: int) -> int:
    vision: Any = configs.vision
    method: Any = recipe.method
    assert vision.model_type == "clip_vision_model", vision.model_type
    width, inner, blocks = vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers - 1
    patches = configs.image_tokens
    rows = images * (patches + 1)  # with the class token
    linear, attended = 2 * rows * (4 * width**2 + 2 * width * inner), 2 * images * (patches + 1) ** 2 * width
    frozen = (2 * blocks - 1) * linear + (2 * blocks + 4 * (blocks - 1)) * attended
    adapters = (6 * blocks - 1) * 2 * rows * width * recipe.vision.adapter_dim
    embedding = 2 * images * patches * 3 * vision.patch_size**2 * width
    projector = 3 * 2 * images * patches * method.hidden * (width + configs.language.hidden_size)
    return frozen + adapters + embedding + projector


COUNTS = ["recompute", "kept", "held GiB", "useful TFLOP", "executed", "ratio", "written out", "kernels", "all kernels"]
COUNTS += ["moved kB", "all GB", "calls", "GPU ms", "share"]
TIMES = ["recompute", "sharding", "gathers", "of the model", "GPU ms", "host ms", "links ms", "after ms", "step ms"]
TIMES += ["samples/s", "share"]


def tables(recipe: Recipe, configs: Configs, tokens: int, ranks: int, card: Card) -> Iterable[list[str]]:
    """The lines of two tables: by policy, and by policy and sharding."""
    samples, depth = recipe.training.micro_batch, configs.language.num_hidden_layers
    useful = useful_flops(recipe, configs, samples, tokens)

    @cache
    def traced(policy: Policy, layers: int) -> Trace:
        language = copy.deepcopy(configs.language)
        language.num_hidden_layers = layers
        return trace(recipe, replace(configs, language=language), tokens, policy, "meta")

    rows = [COUNTS]
    for policy in POLICIES:
        whole = traced(policy, depth)
        rows.append(
            [policy, *_counts(whole, layer(whole, traced(policy, SHORT), depth, samples * tokens), card, useful)]
        )
    yield table(list(zip(*rows, strict=True)), left=1)
    rows, cluster = [TIMES], Cluster(ranks, 8)
    for policy in POLICIES:
        whole = traced(policy, depth)
        for name in ("replicated", "zero3", "zero3_hpz"):
            rows.append([policy, *_sharded(whole, name, cluster, card, samples, useful)])
    yield table(list(zip(*rows, strict=True)), left=2)


def _counts(whole: Trace, found: Layer, card: Card, useful: int) -> list[str]:
    seconds = gpu_seconds(whole.operations, card)
    return [
        *(f"{found.kept:,.0f}", f"{whole.held / 2**30:.2f}"),
        *(f"{useful / 1e12:.1f}", f"{whole.flops / 1e12:.1f}", f"{whole.flops / useful:.3f}"),
        *(str(found.written_out), str(found.kernels), f"{_started(whole.operations):,}"),
        *(f"{found.moved / 1e3:,.0f}", f"{_moved(whole.operations) / 1e9:.0f}"),
        *(f"{sum(whole.operations.values()):,}", f"{1e3 * seconds:.0f}", f"{useful / seconds / card.flops:.1%}"),
    ]


def _sharded(whole: Trace, name: str, cluster: Cluster, card: Card, samples: int, useful: int) -> list[str]:
    sharding = read_sharding(ROOT / "ds_configs" / f"{name}.json")
    gathers = simulate(whole, sharding, 1)
    links = duration(0, traffic(whole, sharding, cluster, gathers), cluster)
    cut = sharding.stage == 3
    gathered = sum(whole.parameters[p].numel for p in gathers.micro_steps[0]) if cut and cluster.gpus > 1 else 0
    size = sum(p.numel for p in whole.parameters)
    gpu = gpu_seconds(whole.operations, card)
    host = HOST_CALL * sum(whole.operations.values()) + HOOK * cut * len(whole.events)
    step = max(gpu, host, links.gathers) + links.exposed
    return [
        *(name, str(gathers.collectives if gathered else 0), f"{gathered / size:.2f}"),
        *(f"{1e3 * seconds:.0f}" for seconds in (gpu, host, links.gathers, links.exposed, step)),
        *(f"{samples / step:.1f}", f"{useful / step / card.flops:.1%}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default=str(ROOT / "recipes" / "scienceqa-13b.yaml"))
    parser.add_argument("--samples", type=int, default=16, help="of a micro-step, on each rank")
    parser.add_argument("--tokens", type=int, default=160, help="of text in a sample")
    parser.add_argument("--ranks", type=int, default=8, help="GPUs, 8 on each node")
    parser.add_argument("--card", choices=CARDS, default="h100")
    given = parser.parse_args()
    recipe, configs = described(Path(given.recipe), given.samples, given.ranks)
    layers = configs.language.num_hidden_layers
    print(
        f"{recipe.name}: {layers} layers; a micro-step of {given.samples} x {given.tokens} tokens with images;"
        f" {given.card}; {given.ranks} ranks. Per layer: kept and moved (bytes per token), written out, kernels"
    )
    for lines in tables(recipe, configs, given.tokens, given.ranks, CARDS[given.card]):
        print(*lines, "", sep="\n")


def described(path: Path, samples: int, ranks: int = 1, *more: str) -> tuple[Recipe, Configs]:
    """A recipe whose micro-batch has so many samples, by its models' shapes: no weights are read. `more` settings."""
    sizes = [f"training.micro_batch={samples}", f"training.global_batch={samples * ranks}", *more]
    recipe = read_recipe(path, sizes)
    return recipe, configs_of_shapes(recipe)


if __name__ == "__main__":
    main()
