"""Training on pictures against training on features that the vision tower has made once (vision.cache_features):

    python benchmarks/cached_features.py recipes/photos.yaml --steps 20 --rounds 2

Both train the same steps of the recipe, in turns, each in a process of its own; the features are computed before, in a
run of one step, whose time is told. Printed are the samples per second of a run's steps (the first `log_every` left
out), and how far the losses of the two lie apart; with model.dtype=fp32 they are to be the same.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LOG_EVERY = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        name = "features-of-a-benchmark"
        start = time.monotonic()
        train(given, Path(folder), "first", 1, name)
        print(f"a first step, in which the features are computed: {time.monotonic() - start:.0f} s\n")
        rates: dict[str, list[float]] = {"pictures": [], "features": []}
        losses: dict[str, dict[int, float]] = {}
        for number in range(given.rounds):
            for what in rates:
                found = train(given, Path(folder), f"{what}-{number}", given.steps, name if what == "features" else "")
                rates[what] += [row["speed/samples_per_second"] for row in found if row["step"] > LOG_EVERY]
                losses[what] = {row["step"]: row["loss/train"] for row in found}
    best = {what: max(found) for what, found in rates.items()}
    print("| training on | samples/s | ratio |\n|---|---:|---:|")
    for what, rate in best.items():
        print(f"| {what} | {rate:.2f} | {rate / best['pictures']:.2f} |")
    apart = max(abs(loss - losses["features"][step]) for step, loss in losses["pictures"].items())
    print(f"\nlosses of {given.steps} steps: at most {apart:.2g} apart, the last {losses['pictures'][given.steps]:.4f}")


def train(given: argparse.Namespace, folder: Path, run: str, steps: int, features: str) -> list[dict]:
    """The run's lines of numbers."""
    command = [sys.executable, "-m", "dsmemvp", "train", str(given.recipe), f"name={run}", f"output={folder}"]
    command += [f"training.stop_at_step={steps}", f"training.log_every={min(LOG_EVERY, steps)}"]
    command += [f"vision.cache_features={features}", *given.overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
