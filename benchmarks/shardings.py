"""Training steps under the ways of sharding, in turn on the same samples with ScienceQA's lengths.

    python benchmarks/shardings.py --threads 1

The ratio is samples/s of each beside the first. The model and the rules of taking turns are those of
train_step_against.py.
"""

import argparse
from contextlib import ExitStack

from train_step_against import ROOT, Contender, of_medians, spec_of, take_turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sharding", nargs="+", default=["replicated.json", "zero3.json"])
    parser.add_argument("--method", default="memvp")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--recompute", default="elementwise")
    parser.add_argument("--global-batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="per rank")
    given = parser.parse_args()
    with ExitStack() as stack:
        sides = {}
        for file in given.sharding:
            spec = spec_of(given, "new", ROOT, file)
            sides[file] = stack.enter_context(Contender("new", ROOT, spec, given.ranks, given.threads))
        rounds = [take_turns(sides, given.steps) for _ in range(given.rounds + 1)]
        del rounds[0]  # allocates, and records the order of gathers
    print("| file | ranks | threads | samples/s | ratio | of CPU seconds |")
    print("|---|---:|---:|---:|---:|---:|")
    first = given.sharding[0]
    for file in given.sharding:
        ratio, cpu = (of_medians(rounds, first, which) / of_medians(rounds, file, which) for which in (0, 1))
        speed = given.global_batch * given.steps / of_medians(rounds, file, 0)
        print(f"| `{file}` | {given.ranks} | {given.threads} | {speed:.2f} | {ratio:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
