"""How long a checkpoint stops training: the trained tensors of scienceqa-13b, on as many ranks as the launcher starts.

    deepspeed --num_gpus 2 benchmarks/checkpoint.py --sharding replicated

The frozen LLaMA has its real widths but one layer and random values: what is saved does not depend on it. Training
waits, on the slowest rank, until values and moments are in the first rank's memory; writing continues beside it.
Columns are medians (and ranges) over saves that take turns:

- one collective per tensor: what training waits for with DeepSpeed's `safe_get_full_fp32_param` and a copy
- partitions as they are: the same by this code (training/gathering.py); `first`: by its first save, which allocates
- pause: the longest for which a thread like the training loop's cannot run Python while a checkpoint is being written
- disk: from the beginning of a save to its end

Goal: training waits at most 0.1 s.
"""

import argparse
import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from deepspeed.utils import safe_get_full_fp32_param

from dsmemvp.backbones.partitioned import fill_randomly
from dsmemvp.backbones.weights import configs_of_shapes
from dsmemvp.checkpoints.checkpoint import State, Tensors
from dsmemvp.config.reading import read_recipe
from dsmemvp.distributed.ranks import Ranks, join_ranks, leave_ranks
from dsmemvp.model import count
from dsmemvp.training.checkpoint_manager import CheckpointManager
from dsmemvp.training.engine import Trainer, build_trainer
from dsmemvp.training.monitor import Monitor

ROOT = Path(__file__).parent.parent
Times = list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--saves", type=int, default=15)
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
        former, waits, pauses, whole = _measure(given.saves, Path(folder), ranks, trainer)
    if ranks.first:
        trained, _ = count(recipe, configs)
        print(f"{trained:,} trained parameters in {len(trainer.trainables)} tensors, on {ranks.device.type}, seconds")
        print("| DeepSpeed | ranks | one collective per tensor | partitions as they are | first | pause | disk |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        columns = [_text(former), _text(waits[1:]), f"{waits[0]:.3f}", _text(pauses), _text(whole)]
        print(f"| `{given.sharding}.json` | {ranks.world} | {' | '.join(columns)} |")
    leave_ranks()


def _measure(saves: int, run: Path, ranks: Ranks, trainer: Trainer) -> tuple[Times, Times, Times, Times]:
    """Seconds of each save: training would have waited with one collective per tensor, it waited, the longest pause
    while it was written, until it was on the disk."""
    manager = CheckpointManager(run, ranks, Monitor(run, False, saves, 0), keep_last=2, keep_best=0)
    former, waits, pauses, whole = [], [], [], []
    for step in range(1, saves + 1):
        former.append(_slowest(ranks, partial(_tensor_by_tensor, trainer)))
        began = time.monotonic()
        waits.append(_slowest(ranks, partial(manager.begin, State(step=step), trainer)))
        pauses.append(_longest_pause())
        manager.finish()
        whole.append(time.monotonic() - began)
    return former, waits, pauses, whole


def _slowest(ranks: Ranks, work: Callable[[], object]) -> float:
    """Seconds of the rank that takes longest; all start together."""
    ranks.any(False)
    began = time.monotonic()
    work()
    own = time.monotonic() - began
    return max(seconds for (seconds,) in ranks.table(own))


def _tensor_by_tensor(trainer: Trainer) -> list[Tensors]:
    """Values three times over: as much as values and two moments, which cannot be had like this before a first step."""
    return [{name: safe_get_full_fp32_param(p).cpu() for name, p in trainer.trainables.items()} for _ in range(3)]


def _longest_pause() -> float:
    """Between two turns of a thread that asks for one every half millisecond, until nothing is being written."""
    longest, last = 0.0, time.monotonic()
    while any(thread.name == "checkpoint writer" for thread in threading.enumerate()):
        time.sleep(0.0005)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest


def _text(times: Times) -> str:
    return f"{statistics.median(times):.3f} ({min(times):.3f} .. {max(times):.3f})"


if __name__ == "__main__":
    main()
