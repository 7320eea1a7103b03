"""How a training step of memvp grows with the tokens of a sample.

    OMP_NUM_THREADS=1 python benchmarks/lengths.py

With an exponent of 1, twice as many tokens take twice as long; it is that between a row and the row before. A step is
forward and backward of the 106 M LLaMA of rivals.py, in one process, without an update; seconds are of the CPU, the
median of the repetitions.
"""

import argparse
import math
import statistics
import time

import torch
from rivals_contenders import Ours, Sample, Shape
from scienceqa_lengths import Length

SUPERVISED = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--repeat", type=int, default=7)
    given = parser.parse_args()
    ours = Ours(Shape(vocabulary=32000, image=112, slots=80), torch.bfloat16)
    print("| tokens | seconds | exponent |\n|---:|---:|---:|")
    before = None
    for tokens in given.tokens:
        seconds = _seconds(ours, tokens, given.batch, given.repeat)
        exponent = f"{math.log(seconds / before[1]) / math.log(tokens / before[0]):.2f}" if before else ""
        print(f"| {tokens} | {seconds:.3f} | {exponent} |", flush=True)
        before = tokens, seconds


def _seconds(ours: Ours, tokens: int, batch: int, repeat: int) -> float:
    length = Length(tokens=tokens, prompt=tokens - SUPERVISED, image=True)
    images = torch.randint(256, (batch, 3, 112, 112), dtype=torch.uint8)
    laid_out = ours.lay_out([Sample(length, torch.randint(3, 32000, (tokens,)), image) for image in images])
    taken = []
    for _ in range(repeat + 2):
        start = time.process_time()
        ours.loss(laid_out).value.backward()
        taken.append(time.process_time() - start)
    return statistics.median(taken[2:])  # the first ones allocate


if __name__ == "__main__":
    main()
