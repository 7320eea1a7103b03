"""One training step of memvp, dvp, mitp and input_space, on the same samples, through the engine that runs use.

    python benchmarks/train_step.py --shape tiny          two CPU cores
    python benchmarks/train_step.py --shape 7b            one CUDA GPU, random weights
    python benchmarks/train_step.py --against COMMIT      the same method by older code (train_step_against.py)

Prints a Markdown table: samples/s, tokens through the language model per sample, share of the matrix-product peak
that is measured in the same run, peak memory. FLOPs are counted at 4N: 2N forward and 2N backward per token of a frozen
model, for the language model and the vision tower; blocks that no gradient passes (dvp and mitp have some) count 2N.
Recomputation is not credited. Each method runs in processes of its own, in turn, and the better of its rounds counts.

memvp and input_space train adapters in the vision tower, dvp and mitp nothing beside what the method itself needs, as
in the recipes for ScienceQA.
"""

import argparse
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scienceqa_lengths import draw
from torch import nn
from train_step_against import compare

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.partitioned import fill_randomly, whole_shape
from dsmemvp.backbones.recompute import KEPT
from dsmemvp.backbones.weights import configs_of_shapes
from dsmemvp.config.methods import method_settings
from dsmemvp.config.recipe import Model, Recipe, Training, Vision
from dsmemvp.data.batch import Batch, Item
from dsmemvp.data.layout import Reserved
from dsmemvp.data.packing import by_image, make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.model import VisualLanguageModel

ROOT = Path(__file__).parent.parent
METHODS = ("memvp", "dvp", "mitp", "input_space")


@dataclass(frozen=True)
class Shape:
    language: str
    vision: str
    slots: int
    """Of memvp"""
    layer: int
    """Of dvp: an eighth of the depth, or as published"""
    micro_batch: int
    steps: int


SHAPES = {
    "tiny": Shape("llama-tiny", "clip-tiny", slots=80, layer=1, micro_batch=8, steps=10),
    "7b": Shape("llama-7b", "clip-vit-l-14", slots=320, layer=4, micro_batch=16, steps=10),
    "13b": Shape("llama-13b", "clip-vit-l-14", slots=400, layer=4, micro_batch=16, steps=10),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--micro-batch", type=int, help="samples per forward (default: by shape)")
    parser.add_argument("--recompute", choices=("none", *KEPT), default="elementwise")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=METHODS, help=argparse.SUPPRESS)
    against = parser.add_argument_group("beside older code")
    against.add_argument("--against", help="a commit, or a folder that holds a work tree of it")
    against.add_argument("--method", choices=METHODS, default="memvp")
    against.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    against.add_argument("--sharding", nargs="+", default=["replicated.json", "zero3.json"])
    against.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    against.add_argument("--threads", type=int, help="per rank (default: the ranks share the cores)")
    against.add_argument("--global-batch", type=int, default=8)
    against.add_argument("--steps", type=int, default=16, help="different steps, taken once per round")
    given = parser.parse_args()
    if given.against:
        compare(given)
        return
    if given.only:
        print(json.dumps(measure(given.only, given)))
        return
    rounds = [{m: _in_own_process(m) for m in METHODS} for _ in range(given.rounds)]
    best = {m: max((r[m] for r in rounds), key=lambda found: found["samples_per_second"]) for m in METHODS}
    print(f"shape {given.shape}, {best['memvp']['about']}, recompute {given.recompute}")
    print("| method | samples/s | ratio | tokens/sample | share of peak | peak memory GiB |")
    print("|---|---:|---:|---:|---:|---:|")
    for method, found in best.items():
        ratio = found["samples_per_second"] / best["input_space"]["samples_per_second"]
        print(
            f"| {method} | {found['samples_per_second']:.2f} | {ratio:.2f} | {found['tokens_per_sample']:.0f}"
            f" | {100 * found['flops'] / found['peak']:.1f} % | {found['memory']:.2f} |"
        )


def _in_own_process(method: str) -> dict:
    command = [sys.executable, __file__, *sys.argv[1:], "--only", method]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(method: str, given: argparse.Namespace) -> dict:
    from dsmemvp.distributed.ranks import join_ranks, leave_ranks
    from dsmemvp.dtypes import NAMED
    from dsmemvp.training.engine import build_trainer
    from dsmemvp.training.monitor import peak_memory

    shape, ranks = SHAPES[given.shape], join_ranks(seconds=1800)
    micro_batch = given.micro_batch or shape.micro_batch
    recipe = _recipe(method, shape, micro_batch, given.recompute)
    configs = configs_of_shapes(recipe)
    trainer = build_trainer(recipe, configs, ranks, load=fill_randomly)
    batches = _batches(configs, trainer.model.method.reserved(), micro_batch)
    vision_tower = trainer.model.vision
    assert vision_tower is not None
    forward_alone = _without_gradient(trainer.model, lambda: _step(trainer, batches[0]))
    _step(trainer, batches[1])  # the first steps allocate and record the order of gathers
    _settle(ranks.device)
    start = time.perf_counter()
    for step in range(shape.steps):
        _step(trainer, batches[step % len(batches)])
    _settle(ranks.device)
    seconds = time.perf_counter() - start
    done = [batches[step % len(batches)] for step in range(shape.steps)]
    tokens = sum(sum(b.lengths) for b in done)
    patches = sum(max(1, b.images.shape[0]) for b in done) * (configs.image_tokens + 1)
    language, vision = (
        4 * _numel(part) - 2 * sum(_numel(block) for block in part.layers if block in forward_alone)
        for part in (trainer.model.language, vision_tower)
    )
    found = {
        "samples_per_second": micro_batch * shape.steps / seconds,
        "tokens_per_sample": tokens / (micro_batch * shape.steps),
        "flops": (language * tokens + vision * patches) / seconds,
        "memory": peak_memory(ranks.device),
        "peak": matrix_product_peak(ranks.device, NAMED[recipe.model.dtype]),
        "about": f"{micro_batch} samples per step, {_hardware(ranks.device)}, {recipe.model.dtype}",
    }
    leave_ranks()
    return found


def _without_gradient(model: VisualLanguageModel, step: Callable[[], None]) -> set[nn.Module]:
    """The frozen blocks that no gradient reaches in this step."""
    found: set[nn.Module] = set()
    hooks = []
    assert model.vision is not None
    for block in (*model.language.layers, *model.vision.layers):
        hooks.append(block.register_forward_hook(lambda b, _, out: None if out.requires_grad else found.add(b)))
    step()
    for hook in hooks:
        hook.remove()
    return found


def _step(trainer, batch: Batch) -> None:
    trainer.accumulate([batch], 1 / batch.targets.numel())
    trainer.update(1e-4)


def _recipe(method: Any, shape: Shape, micro_batch: int, recompute: Any) -> Recipe:
    training = Training(
        global_batch=micro_batch,
        micro_batch=micro_batch,
        recompute=recompute,
        deepspeed=str(ROOT / "ds_configs" / "zero3.json"),
    )
    model = Model(language_shape=shape.language, vision_shape=shape.vision, dtype="bf16")
    own = {"memvp": {"slots": shape.slots}, "dvp": {"layer": shape.layer}}.get(method, {})
    vision = Vision(adapter_dim=0) if method in ("dvp", "mitp") else Vision()
    return Recipe("benchmark", model=model, vision=vision, method=method_settings(method, **own), training=training)


def _batches(configs: Configs, reserved: Sequence[Reserved], micro_batch: int) -> list[Batch]:
    """A few micro-batches of random tokens and pixels in ScienceQA's lengths, the same samples for every method."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    side, vocabulary, batches = configs.resolution, configs.language.vocab_size, []
    lengths = draw(4 * micro_batch)
    for start in range(0, len(lengths), micro_batch):
        items = []
        for index, length in enumerate(lengths[start : start + micro_batch]):
            tokens = [rng.randrange(3, vocabulary) for _ in range(length.tokens)]
            pixels = torch.randint(256, (3, side, side), dtype=torch.uint8, generator=generator)
            text = EncodedText(tokens, length.prompt, False, cue=1)
            items.append(Item(index, text, pixels if length.image else None))
        batches.append(make_batch(by_image(items), side, reserved).batch)
    return batches


def matrix_product_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, the best of several."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(8):
        _settle(device)
        start = time.perf_counter()
        for _ in range(3):
            a @ b
        _settle(device)
        best = max(best, 3 * 2 * n**3 / (time.perf_counter() - start))
    return best


def _numel(module) -> int:
    return sum(math.prod(whole_shape(p)) for p in module.parameters() if not p.requires_grad)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads"


if __name__ == "__main__":
    main()
