"""The same function over many shards, in processes of its own, with a bar on a terminal or lines in a log."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from dsmemvp.counting import counted

S = TypeVar("S")
T = TypeVar("T")
SECONDS = 30
"""Between two lines in a log."""


def over_shards(work: Callable[[S], T], shards: Sequence[S], about: str, processes: int = 0) -> Iterator[T]:
    """`work` of every shard, in their order. `processes` 0: one per core. Exceptions of `work` are raised here."""
    processes = min(processes or len(os.sched_getaffinity(0)), len(shards))
    bar = tqdm(total=len(shards), desc=about, unit="shard", disable=not sys.stderr.isatty())
    said = time.monotonic()
    with bar, ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("forkserver")) as pool:
        futures = [pool.submit(work, shard) for shard in shards]
        try:
            for number, future in enumerate(futures, 1):
                yield future.result()
                bar.update()
                if bar.disable and time.monotonic() - said > SECONDS:
                    said = time.monotonic()
                    print(f"{about}: {number} of {counted(len(shards), 'shard')}", file=sys.stderr, flush=True)
        finally:
            for future in futures:
                future.cancel()
