"""Training steps of MemVP in this package beside its published code's structure and transformers' Llava + peft.

    pip install 'dsmemvp[peft]'
    python benchmarks/rivals.py --vocabulary 2000      the head is under 5 % of all contenders' FLOPs
    python benchmarks/rivals.py --vocabulary 32000     LLaMA's vocabulary: 106 M parameters

All train the same samples of ScienceQA's lengths, with models of the same sizes and random weights: a LLaMA of 8 layers
of width 768, and a CLIP tower so small that an image costs about as many text tokens as with LLaMA-13B and ViT-L/14.
`--image 112 --slots 80` has 64 patches instead of 256. Every contender runs a plain loop in one process, with AdamW on
float32 values of what it trains; no DeepSpeed. What they are stands in rivals_contenders.py and rivals_published.py.

They take single steps in turn, each on the same samples. A round is every step once, and the ratio of a round is a
contender's seconds over this package's; printed is the median over the rounds, with the lowest and the highest. CPU
seconds leave out what else a busy machine does, but hold the waiting of threads. FLOPs are those that torch counts in
forward and backward (causal attention in full); kept are the bytes that a forward leaves allocated for the backward;
places are those of the language model's sequence, padding included.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from measured_memory import held_and_peak
from rivals_contenders import RIVALS, Loss, Ours, Shape, samples
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dsmemvp.config.recipe import Training
from dsmemvp.dtypes import NAMED
from dsmemvp.markdown import table
from dsmemvp.planning.meter import CPU_ATTENTION


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--vocabulary", type=int, default=2000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--image", type=int, default=224, help="height and width in pixels, 14 to a patch")
    parser.add_argument("--slots", type=int, default=320)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--batch", type=int, default=8, help="samples per step")
    parser.add_argument("--steps", type=int, default=6, help="different steps, taken once per round")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if "llava" in given.rivals and importlib.util.find_spec("peft") is None:
        raise SystemExit("peft is not installed: pip install 'dsmemvp[peft]', or run with --rivals published")
    compare(given)


def compare(given: argparse.Namespace) -> None:
    shape = Shape(given.vocabulary, given.width, given.layers, given.image, given.slots)
    drawn = samples(shape, given.batch * given.steps)
    steps = [drawn[start : start + given.batch] for start in range(0, len(drawn), given.batch)]
    contenders = [kind(shape, NAMED[given.dtype]) for kind in (Ours, *(RIVALS[name] for name in given.rivals))]
    runs = [_Run(contender, steps) for contender in contenders]
    counts = [run.count() for run in runs]
    for run in runs:
        run.step(0)  # allocates the optimizer's state
    rounds = [_round(runs, given.steps) for _ in range(given.rounds)]
    tokens, images = (
        sum(each) / len(drawn) for each in zip(*((s.length.tokens, s.length.image) for s in drawn), strict=True)
    )
    print(
        f"{given.batch} samples per step, {tokens:.0f} tokens and {images:.2f} images each, {shape.patches} patches,"
        f" {given.slots} slots, vocabulary {given.vocabulary}, {given.dtype}, {torch.get_num_threads()} CPU threads,"
        f" {given.rounds} rounds of {given.steps} steps; dsmemvp recomputes {Training().recompute}\n"
    )
    rows = [_row(index, runs[index].contender.name, counts, rounds, len(drawn)) for index in range(len(runs))]
    print("\n".join(table(list(zip(HEAD, *rows, strict=True)), left=1)))


HEAD = (
    *("contender", "samples/s", "ours is faster by", "of a round", "of CPU seconds"),
    *("GFLOP/sample", "of ours", "head", "GFLOP/s", "places/sample", "kept, MiB", "of ours"),
)


def _row(index: int, name: str, counts: Sequence["Counts"], rounds: Sequence["Round"], size: int) -> list[str]:
    """A round has `size` samples."""
    own, ours = counts[index], counts[0]
    ratios, used = ([r[which][index] / r[which][0] for r in rounds] for which in (0, 1))
    speed, gflop = size / statistics.median(seconds[index] for seconds, _ in rounds), own.flops / size / 1e9
    return [
        name,
        f"{speed:.2f}",
        f"{statistics.median(ratios):.2f}",
        f"{min(ratios):.2f} .. {max(ratios):.2f}",
        f"{statistics.median(used):.2f}",
        f"{gflop:.1f}",
        f"{own.flops / ours.flops:.2f}",
        f"{100 * own.head_flops / own.flops:.1f} %",
        f"{gflop * speed:.0f}",
        f"{own.places / size:.0f}",
        f"{own.kept / 2**20:.0f}",
        f"{own.kept / ours.kept:.2f}",
    ]


Round = tuple[list[float], list[float]]
"""Seconds and CPU seconds of each contender, the sums of all steps."""


def _round(runs: Sequence["_Run"], steps: int) -> Round:
    seconds, used = [0.0] * len(runs), [0.0] * len(runs)
    for step in range(steps):
        for index, run in enumerate(runs):
            start, start_used = time.perf_counter(), time.process_time()
            run.step(step)
            seconds[index] += time.perf_counter() - start
            used[index] += time.process_time() - start_used
    return seconds, used


@dataclass
class Counts:
    """Of a round."""

    flops: int = 0
    head_flops: int = 0
    places: int = 0
    kept: int = 0
    """Bytes, in the step that keeps most."""


class _Run:
    def __init__(self, contender: Any, steps: Sequence[Sequence]):
        self.contender = contender
        self.batches = [contender.lay_out(some) for some in steps]
        self.trained = [p for p in contender.model.parameters() if p.requires_grad]
        # AdamW updates float32 values; a trained tensor of another type is rounded from them
        self.masters = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in self.trained]
        self.optimizer = torch.optim.AdamW(self.masters, lr=1e-5, fused=True)

    def step(self, step: int) -> None:
        self.contender.loss(self.batches[step]).value.backward()
        self._update()

    def count(self) -> Counts:
        """Forward and backward of every step once, without updates."""
        counts = Counts()
        for batch in self.batches:
            held, _ = held_and_peak(lambda batch=batch: self.contender.loss(batch))
            with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
                loss: Loss = self.contender.loss(batch)
                loss.value.backward()
            self.optimizer.zero_grad()
            for parameter in self.trained:
                parameter.grad = None
            counts.flops += counter.get_total_flops()
            counts.head_flops += 4 * loss.logits * self._head().weight.numel()  # forward, and backward to its input
            counts.places += loss.places
            counts.kept = max(counts.kept, held)
        return counts

    def _head(self) -> nn.Linear:
        (head,) = (module for name, module in self.contender.model.named_modules() if name.endswith("lm_head"))
        return head

    def _update(self) -> None:
        for parameter, master in zip(self.trained, self.masters, strict=True):
            if master is not parameter:
                assert parameter.grad is not None
                master.grad = parameter.grad.float()
                parameter.grad = None
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for parameter, master in zip(self.trained, self.masters, strict=True):
                if master is not parameter:
                    parameter.copy_(master)


if __name__ == "__main__":
    main()
