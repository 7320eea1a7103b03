"""How long a checkpoint stops training: the trained tensors of scienceqa-13b, on as many ranks as the launcher starts.

    deepspeed --num_gpus 2 benchmarks/checkpoint.py --sharding replicated

The frozen LLaMA has its real widths but one layer and random values: what is saved does not depend on it. Training
waits, on the slowest rank, until values and moments are in the first rank's memory; writing continues beside it. Two
ways take turns; columns are medians (and ranges) over the saves:

- per tensor, waits: one collective (DeepSpeed's `safe_get_full_fp32_param`) and one copy for each tensor
- per tensor, pause: the longest for which a thread like the training loop's cannot run Python while another one
  writes what was gathered so with safetensors' `save`
- waits, pause: the same by this code (training/gathering.py, checkpoints/checkpoint.py); first: its first save waits,
  which allocates its buffers, and is not among the others
- on disk: from the beginning of a save to its end

Goal: training waits at most 0.1 s.
"""

import argparse
import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import save

from dsmemvp.backbones.partitioned import fill_randomly
from dsmemvp.backbones.weights import configs_of_shapes
from dsmemvp.checkpoints.checkpoint import State, Tensors
from dsmemvp.config.reading import read_recipe
from dsmemvp.distributed.ranks import Ranks, join_ranks, leave_ranks
from dsmemvp.stages import count
from dsmemvp.training.checkpoint_manager import CheckpointManager
from dsmemvp.training.engine import Trainer, build_trainer
from dsmemvp.training.monitor import Monitor

ROOT = Path(__file__).parent.parent
WRITER = "checkpoint writer"
"""The name of the thread that writes."""


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
        saves = list(_saves(given.saves, Path(folder), ranks, trainer))
    if ranks.first:
        trained, _ = count(recipe, configs)
        print(f"{trained:,} trained parameters in {len(trainer.trainables)} tensors, on {ranks.device.type}, seconds")
        print("| DeepSpeed | ranks | per tensor, waits | pause | waits | pause | first | on disk |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|")
        first, *others = saves
        *columns, on_disk = map(_text, zip(*others, strict=True))
        row = [f"`{given.sharding}.json`", str(ranks.world), *columns, f"{first.waits:.3f}", on_disk]
        print(f"| {' | '.join(row)} |")
    leave_ranks()


class _Save(NamedTuple):
    """Seconds, as the columns say."""

    former_waits: float
    former_pause: float
    waits: float
    pause: float
    on_disk: float


def _saves(saves: int, run: Path, ranks: Ranks, trainer: Trainer) -> Iterator[_Save]:
    manager = CheckpointManager(run, ranks, Monitor(run, False, saves, 0), keep_last=2, keep_best=0)
    for step in range(saves):
        tensors: Tensors = {}
        former_waits = _slowest(ranks, partial(_tensor_by_tensor, trainer, tensors))
        if ranks.first:
            threading.Thread(target=_write_formerly, args=(run, tensors), name=WRITER).start()
        former_pause = _longest_pause()
        waits = _slowest(ranks, partial(manager.begin, State(step=step), trainer))
        began = time.monotonic() - waits
        pause = _longest_pause()
        manager.finish()
        yield _Save(former_waits, former_pause, waits, pause, time.monotonic() - began)


def _slowest(ranks: Ranks, work: Callable[[], object]) -> float:
    """Seconds of the rank that takes longest; all start together."""
    ranks.any(False)
    began = time.monotonic()
    work()
    own = time.monotonic() - began
    return max(seconds for (seconds,) in ranks.table(own))


def _tensor_by_tensor(trainer: Trainer, tensors: Tensors) -> None:
    """Values three times over: as much as values and two moments, which cannot be had like this before a first step."""
    for kind in range(3):
        for name, parameter in trainer.trainables.items():
            tensors[f"{kind}.{name}"] = safe_get_full_fp32_param(parameter).cpu()


def _write_formerly(folder: Path, tensors: Tensors) -> None:
    (folder / "former.safetensors").write_bytes(save({name: t.contiguous() for name, t in tensors.items()}))


def _longest_pause() -> float:
    """Between two turns of a thread that asks for one every half millisecond, until nothing is being written."""
    longest, last = 0.0, time.monotonic()
    while any(thread.name == WRITER for thread in threading.enumerate()):
        time.sleep(0.0005)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest


def _text(times: Sequence[float]) -> str:
    return f"{statistics.median(times):.3f} ({min(times):.3f} .. {max(times):.3f})"


if __name__ == "__main__":
    main()
