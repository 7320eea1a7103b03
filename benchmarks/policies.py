"""Memory and time of a training step under every policy of gradient checkpointing, side by side, and beside an older
commit.

    python benchmarks/policies.py
    python benchmarks/policies.py --against 27f00e9    older code without recomputation is one more contender

Each contender is a process of its own (`train_step_worker.py`); they take single steps in turn on the same samples, and
the ones that wait sleep. Seconds are the sum over steps of the medians over rounds; the range is that of the rounds.

    held    MiB that the forward leaves for the backward, of the step that has most
    peak    MiB that forward and backward hold at most beyond what was there before, gradients included

Both are the allocator's own record (measured_memory.py) and the same for every run. Ratios are to the first contender.
"""

import argparse
import os
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

from train_step_against import ROOT, Contender, of_medians, spec_of, take_turns, worktree

from dsmemvp.markdown import table
from dsmemvp.planning.plan import POLICIES

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].replace("\n", " "))
    parser.add_argument("--against", help="a commit, or a folder that holds a work tree of it")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--method", choices=("memvp", "input_space"), default="memvp")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--sharding", default="replicated.json")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, help="per rank (default: the ranks share the cores)")
    parser.add_argument("--global-batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8, help="different steps, taken once per round")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    threads = given.threads or max(1, len(os.sched_getaffinity(0)) // given.ranks)
    with ExitStack() as stack:
        sides = {}
        if given.against:
            old = stack.enter_context(worktree(given.against))
            name = f"none, {given.against}"
            sides[name] = stack.enter_context(_contender("old", old, given, "none", threads))
        for policy in given.policies:
            sides[policy] = stack.enter_context(_contender("new", ROOT, given, policy, threads))
        rounds = [take_turns(sides, given.steps) for _ in range(given.rounds + 1)]
        del rounds[0]  # allocates
        memory = {side: [contender.memory(step) for step in range(given.steps)] for side, contender in sides.items()}
    print(
        f"{given.method}, {given.global_batch} samples per step, {given.dtype}, {given.sharding}, ranks {given.ranks},"
        f" threads {threads}, {given.rounds} rounds of {given.steps} steps"
    )
    print(*table(list(zip(*_rows(rounds, memory, given), strict=True)), left=1), sep="\n")


def _contender(side: str, root: Path, given: Namespace, policy: str, threads: int) -> Contender:
    spec = spec_of(Namespace(**vars(given) | {"recompute": policy}), side, root, given.sharding)
    return Contender(side, root, spec, given.ranks, threads)


def _rows(
    rounds: list[dict[str, list[tuple[float, float]]]], memory: dict[str, list[tuple[int, int]]], given: Namespace
) -> list[list[str]]:
    rows = [["recompute", "held", "ratio", "peak", "ratio", "ms/step", "ratio", "of a round", "of CPU seconds"]]
    most = {side: [max(step[which] for step in steps) for which in (0, 1)] for side, steps in memory.items()}
    first = next(iter(memory))
    for side, (held, peak) in most.items():
        seconds, used = (of_medians(rounds, side, which) for which in (0, 1))
        ratios = [of_medians([r], side, 0) / of_medians([r], first, 0) for r in rounds]
        rows.append(
            [
                *(side, f"{held / MIB:.1f}", f"{held / most[first][0]:.2f}"),
                *(f"{peak / MIB:.1f}", f"{peak / most[first][1]:.2f}", f"{1e3 * seconds / given.steps:.0f}"),
                *(f"{seconds / of_medians(rounds, first, 0):.2f}", f"{min(ratios):.2f} .. {max(ratios):.2f}"),
                f"{used / of_medians(rounds, first, 1):.2f}",
            ]
        )
    return rows


if __name__ == "__main__":
    main()
