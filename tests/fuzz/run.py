"""Readers of files against damaged files: `python tests/fuzz/run.py --cases 100 [--seed N] [--reader NAME]`.

The rule: what is damaged is read as it was meant, or refused in one error of the user's, with exit code 1, within 20 s
and 1 GiB, and nothing else is written to stderr. Writes a line of JSON for every reader.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from fuzz.cases import Reader, tried  # noqa: E402
from fuzz.examples import readers  # noqa: E402
from fuzz.hostile import HOSTILE  # noqa: E402
from fuzz.mutate import mutated  # noqa: E402


def fuzzed(reader: Reader, cases: int, seed: int) -> list[str]:
    """Complaints about a reader."""
    whole = tried(reader, {}, None)
    if whole.wrong or not whole.accepted:
        return [f"{reader.name}: the whole example: {whole.wrong} {whole.said}"]
    complaints = []
    for name, files, spoil in HOSTILE.get(reader.name, ()):
        outcome = tried(reader, files, whole.said, spoil)
        if outcome.wrong or outcome.accepted:
            complaints.append(f"{reader.name}: {name}: {outcome.wrong or 'accepted'}\n{outcome.said}")
    for case in range(cases):
        rng = random.Random(f"{seed} {reader.name} {case}")
        file = rng.choice(reader.files)
        content = mutated((reader.example / file).read_bytes(), rng)
        outcome = tried(reader, {file: content}, whole.said)
        if outcome.wrong:
            complaints.append(f"{reader.name}, seed {seed}, case {case} ({file}): {outcome.wrong}\n{outcome.said}")
    return complaints


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100, help="for each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reader", help="this one alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    failed, names = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for reader in readers(Path(folder)):
            names.append(reader.name)
            if given.reader in (None, reader.name):
                began = time.monotonic()
                complaints = fuzzed(reader, given.cases, given.seed)
                failed += bool(complaints)
                row = {"reader": reader.name, "seed": given.seed, "seconds": round(time.monotonic() - began, 1)}
                print(json.dumps({**row, "complaints": complaints}), flush=True)
    if given.reader not in (None, *names):
        parser.error(f"--reader: there is none called {given.reader!r}, only {', '.join(names)}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
