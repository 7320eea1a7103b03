"""How long a checkpoint stops training: the trained tensors of scienceqa-13b, on as many ranks as the launcher starts.

    deepspeed --num_gpus 2 benchmarks/checkpoint.py

The frozen LLaMA has its real widths but one layer and random values: what is saved does not depend on it. `training
waits` while values and moments are gathered; writing continues beside it. Goal: well under a second.
"""

import argparse
import contextlib
import tempfile
import time
from pathlib import Path

from dsmemvp.backbones.partitioned import fill_randomly
from dsmemvp.backbones.weights import configs_of_shapes
from dsmemvp.checkpoints.checkpoint import State
from dsmemvp.config.reading import read_recipe
from dsmemvp.distributed.ranks import join_ranks, leave_ranks
from dsmemvp.model import count
from dsmemvp.training.checkpoint_manager import CheckpointManager
from dsmemvp.training.engine import build_trainer
from dsmemvp.training.monitor import Monitor

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--sharding", default="zero3", help="a file of ds_configs/")
    parser.add_argument("--out", type=Path, help="folder on the file system to write to (default: the system's)")
    given = parser.parse_args()
    ranks = join_ranks(seconds=1800)
    recipe = read_recipe(
        ROOT / "recipes" / "scienceqa-13b.yaml",
        [f"training.deepspeed={ROOT / 'ds_configs' / given.sharding}.json", f"training.global_batch={4 * ranks.world}"],
    )
    configs = configs_of_shapes(recipe)
    configs.language.num_hidden_layers = 1
    trainer = build_trainer(recipe, configs, ranks, load=fill_randomly)
    with tempfile.TemporaryDirectory(dir=given.out) if ranks.first else contextlib.nullcontext("") as folder:
        waits, whole = _save(given.saves, Path(folder), ranks, trainer.master_weights)
    if ranks.first:
        trained, _ = count(recipe, configs)
        print(f"{trained:,} trained parameters, {ranks.world} ranks on {ranks.device.type}, {given.sharding}")
        print("| save | training waits, s | until it is on the disk, s |\n|---:|---:|---:|")
        for number, (waited, until) in enumerate(zip(waits, whole, strict=True), 1):
            print(f"| {number} | {waited:.3f} | {until:.3f} |")
    leave_ranks()


def _save(saves: int, run: Path, ranks, master_weights) -> tuple[list[float], list[float]]:
    """Seconds of each save: training waited, and whole."""
    monitor = Monitor(run, False, saves, 0)
    manager = CheckpointManager(run, ranks, monitor, keep_last=2, keep_best=0)
    waits, whole = [], []
    for step in range(1, saves + 1):
        ranks.any(False)  # start together
        began = time.monotonic()
        manager.begin(State(step=step), master_weights)
        waits.append(time.monotonic() - began)
        manager.finish()
        whole.append(time.monotonic() - began)
    return waits, whole


if __name__ == "__main__":
    main()
