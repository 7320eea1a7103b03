"""Runs on two ranks under random faults, from one seed: each run is started again after every fault until it is done,
and has to end as if nothing had been.

A fault is one of what tests/programs/with_fault.py does within a rank (a kill, an error, a hang, a request to end, at a
place and time drawn at random), or of DAMAGE, which is done to the run's folder between two starts.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from faulty import Ended, Ranks, numbers, rows, steps

KILL, ASK, FAIL = "KILL", ("USR2", "TERM", "INT"), "RuntimeError"
WITHIN = {
    # place -> (most passes before it happens, on rank 0 only)
    "loading": (1, False),
    "forward": (20, False),
    "backward": (20, False),
    "forward and backward": (40, False),
    "reading": (10, False),
    "update": (10, False),
    "validating": (8, False),
    "saving": (4, False),
    "save-write": (3, True),
    "save-tensors": (6, True),
    "save-flush": (8, True),
    "save-rename": (3, True),
    "save-renamed": (3, True),
    "prune": (2, True),
}
ENDS = {
    # what happened -> how the rank it happened on may end, and the other one
    KILL: ({-9}, {70}),
    FAIL: ({70}, {70}),
    "STOP": ({-9, 70}, {-9, 70}),
    **{name: ({75, 0}, {75, 0}) for name in ASK},
    "": ({0}, {0}),
}


def _newest_file(run: Path, rng: random.Random) -> Path | None:
    """One of the newest checkpoint's files, if there is a checkpoint before it to resume from."""
    folders = sorted((run / "checkpoints").glob("step-*"))
    return rng.choice(sorted(folders[-1].iterdir())) if len(folders) > 1 else None


def _flip(run: Path, rng: random.Random) -> bool:
    path = _newest_file(run, rng)
    if path is None:
        return False
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return True


def _cut(run: Path, rng: random.Random) -> bool:
    path = _newest_file(run, rng)
    if path is None:
        return False
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    return True


def _half_a_line(run: Path, rng: random.Random) -> bool:
    path = run / rng.choice(["metrics.jsonl", "order.jsonl", "starts.jsonl"])
    if not path.exists():
        return False
    with path.open("a") as file:
        file.write(json.dumps({"step": 10**6, "from": 10**6})[: rng.randrange(1, 20)])
    return True


def _foreign_lines(run: Path, rng: random.Random) -> bool:
    with (run / "starts.jsonl").open("a") as file:
        file.write(rng.choice(["somebody else's\n", "[" * 100_000 + "\n", '{"from": null}\n', "7\n"]))
    return True


def _unfinished_save(run: Path, rng: random.Random) -> bool:
    folder = run / "checkpoints" / f"partial-step-{rng.randrange(99):08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trained.safetensors").write_bytes(rng.randbytes(100))
    return True


DAMAGE: dict[str, Callable[[Path, random.Random], bool]] = {
    "a byte of the newest checkpoint": _flip,
    "the end of a file of the newest checkpoint": _cut,
    "half a line at the end of a record": _half_a_line,
    "lines of somebody else's among those of starts": _foreign_lines,
    "a save that was cut off": _unfinished_save,
}
"""What is done to a run's folder; whether there was anything to do it to."""


@dataclass
class Soak:
    command: list[str]
    """A training run, without its output."""
    uninterrupted: Path
    """The folder that it leaves without any fault."""
    folder: Path
    rng: random.Random
    faults: Counter[str] = field(default_factory=Counter)
    """What has happened, and how often."""
    runs: int = 0

    def until(self, enough: Callable[["Soak"], bool]) -> None:
        """Run after run, each to its end, until it is enough. The last one is left alone when it is."""
        while not enough(self):
            self._run_to_its_end(self.folder / f"run-{self.runs}", enough)
            self.runs += 1

    def _run_to_its_end(self, folder: Path, enough: Callable[["Soak"], bool]) -> None:
        run, starts = folder / "demo", 0
        while True:
            if starts and not enough(self):
                self._damage(run)
            text, rank = ("", 1) if enough(self) else self._fault()
            logs = folder / f"logs-{starts}"
            # a rank that stands still is given up after 6 s
            arguments = [*self.command, f"output={folder}", "training.silence_timeout=6"]
            with Ranks(arguments, logs, fault=text, on=rank) as ranks:
                ended = ranks.ended()
            starts += 1
            action = text.split(":")[1] if text and f"fault: {text.split(':')[1]}" in ended.said[rank] else ""
            self._check_end(ended, action, rank, text)
            if action:
                self.faults[f"{action} in {text.split(':')[0]}"] += 1
            if ended.codes == [0, 0]:
                break
        self._check_whole(run)
        shutil.rmtree(folder)

    def _fault(self) -> tuple[str, int]:
        place = self.rng.choice(sorted(WITHIN))
        most, first_only = WITHIN[place]
        if place in ("reading", "update") and self.rng.random() < 0.1:
            action = "STOP"
        elif place in ("backward", "update") and self.rng.random() < 0.2:
            action = FAIL
        else:
            action = self.rng.choice([KILL, KILL, *ASK])
        return f"{place}:{action}:{self.rng.randint(1, most)}", 0 if first_only else self.rng.randrange(2)

    def _damage(self, run: Path) -> None:
        kind = self.rng.choice(sorted(DAMAGE))
        if self.rng.random() < 0.5 and DAMAGE[kind](run, self.rng):
            self.faults[kind] += 1

    def _check_end(self, ended: Ended, action: str, rank: int, text: str) -> None:
        own, other = ENDS[action]
        assert ended.codes[rank] in own and ended.codes[1 - rank] in other, f"{text} on rank {rank}\n{ended.text}"
        assert action == FAIL or "Traceback" not in ended.text, f"{text} on rank {rank}\n{ended.text}"

    def _check_whole(self, run: Path) -> None:
        for name in ("loss/train", "loss/validation"):
            assert numbers(run, name) == numbers(self.uninterrupted, name), run
        assert rows(run, "order") == rows(self.uninterrupted, "order"), run
        assert steps(run)[-1] == steps(self.uninterrupted)[-1], run
        for name in ("trained", "optimizer"):
            last = Path("checkpoints") / f"step-{steps(run)[-1]:08d}" / f"{name}.safetensors"
            assert (run / last).read_bytes() == (self.uninterrupted / last).read_bytes(), run
