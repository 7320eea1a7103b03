"""Training steps of this code beside those of an older commit, on the same samples with ScienceQA's lengths.

    python benchmarks/train_step.py --against 4a25991
    python benchmarks/train_step.py --against ../old        a work tree of it

Both sides run at the same time as processes of their own (`train_step_worker.py`) and take single steps in turn:
old, new, old, new, each pair on the same samples; the one that waits sleeps. A round is every step once. A step's
seconds are its median over the rounds, and samples/s and ratio follow from their sums, so that what else the machine
does hits both sides; the lowest and the highest ratio of a single round stand beside it. On a
busy machine the ratio of CPU seconds tells more (with one thread per rank, since idle threads spin).
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WORKER = Path(__file__).parent / "train_step_worker.py"
LANGUAGE = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "intermediate_size": 2048,
}
"""106 M parameters."""
VISION = {
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
"""clip-tiny"""


def compare(given: argparse.Namespace) -> None:
    print(f"{given.method}, {given.global_batch} samples per step, {given.dtype}; places: of the sequence, per sample")
    print("| file | ranks | threads | old, samples/s | new | ratio | of a round | of CPU seconds | old, places | new |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    with worktree(given.against) as old:
        for sharding in given.sharding:
            for ranks in given.ranks:
                _row(given, old, sharding, ranks)


def _row(given: argparse.Namespace, old: Path, sharding: str, ranks: int) -> None:
    threads = given.threads or max(1, len(os.sched_getaffinity(0)) // ranks)
    with ExitStack() as stack:
        sides = {
            side: stack.enter_context(Contender(side, root, spec_of(given, side, root, sharding), ranks, threads))
            for side, root in (("old", old), ("new", ROOT))
        }
        rounds = [take_turns(sides, given.steps) for _ in range(given.rounds + 1)]
        del rounds[0]  # allocates, and records the order of gathers
        places = {side: contender.tokens / (given.global_batch * given.steps) for side, contender in sides.items()}
    seconds, used = ({side: of_medians(rounds, side, which) for side in sides} for which in (0, 1))
    speeds = {side: given.global_batch * given.steps / taken for side, taken in seconds.items()}
    ratios = [of_medians([r], "old", 0) / of_medians([r], "new", 0) for r in rounds]
    speed, cpu = speeds["new"] / speeds["old"], used["old"] / used["new"]
    print(
        f"| `{sharding}` | {ranks} | {threads} | {speeds['old']:.2f} | {speeds['new']:.2f} | {speed:.2f}"
        f" | {min(ratios):.2f} .. {max(ratios):.2f} | {cpu:.2f} | {places['old']:.0f} | {places['new']:.0f} |",
        flush=True,
    )


def take_turns(sides: dict[str, "Contender"], steps: int) -> dict[str, list[tuple[float, float]]]:
    """(seconds, CPU seconds) of every step."""
    seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for step in range(steps):
        for side, contender in sides.items():
            seconds[side].append(contender.run(step))
    return seconds


def of_medians(rounds: list[dict[str, list[tuple[float, float]]]], side: str, which: int) -> float:
    """Sum over steps of the median over rounds."""
    return sum(
        statistics.median(step[which] for step in steps) for steps in zip(*(r[side] for r in rounds), strict=True)
    )


def spec_of(given: argparse.Namespace, side: str, root: Path, sharding: str) -> dict[str, Any]:
    return {
        "side": side,
        "root": str(root.resolve()),
        "language": LANGUAGE,
        "vision": VISION,
        "method": given.method,
        "slots": 80,
        "dtype": given.dtype,
        "recompute": given.recompute,
        "deepspeed": str(root / "ds_configs" / sharding),
        "global_batch": given.global_batch,
        "steps": given.steps,
    }


class Contender:
    """The ranks of one side, waiting for lines on their standard inputs."""

    def __init__(self, side: str, root: Path, spec: dict[str, Any], ranks: int, threads: int):
        port = _free_port()
        self.processes: list[Any] = []
        for rank in range(ranks):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            numbers = {"OMP_NUM_THREADS": threads}
            more = {k: str(v) for k, v in (place | meeting | numbers).items()}
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, str(WORKER), json.dumps(spec)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=os.environ | more | {"PYTHONPATH": str(root.resolve())},
                )
            )
        self.tokens = sum(about["tokens"] for about in self._answers())
        """Places of the sequence that all ranks compute in a round."""

    def run(self, step: int) -> tuple[float, float]:
        """Seconds of the slowest rank, and CPU seconds of all."""
        seconds, used = zip(*self._asked(f"{step}"), strict=True)
        return max(seconds), sum(used)

    def memory(self, step: int) -> tuple[int, int]:
        """Bytes of the rank that has most: held between forward and backward, and at any moment."""
        held, peak = zip(*self._asked(f"memory {step}"), strict=True)
        return max(held), max(peak)

    def language(self) -> tuple[int, int]:
        """Of the rank that has most: bytes of the language model's tensors, and what the system gets back of them. It
        has none afterwards."""
        held, resident = zip(*self._asked("language 0"), strict=True)
        return max(held), max(resident)

    def _asked(self, line: str) -> list[Any]:
        for process in self.processes:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
        return self._answers()

    def _answers(self) -> list[Any]:
        return [_last_json(process) for process in self.processes]

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait(timeout=60)


def _last_json(process: Any) -> Any:
    """The next line that is JSON; DeepSpeed prints others between."""
    for line in process.stdout:
        try:
            return json.loads(line)
        except ValueError:
            print(line, end="", file=sys.stderr)
    raise SystemExit("a contender ended early; what it said stands above")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def worktree(against: str) -> Iterator[Path]:
    """The folder `against`, or a work tree of the commit `against` for as long as it is needed."""
    if Path(against).is_dir():
        yield Path(against)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "old"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", path, against], cwd=ROOT, check=True)
        try:
            yield path
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", path], cwd=ROOT, check=True)
