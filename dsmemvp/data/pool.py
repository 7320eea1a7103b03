"""The same function over many shards, in processes of its own, with a bar on a terminal or lines in a log."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from dsmemvp.progress import Progress

S = TypeVar("S")
T = TypeVar("T")


def over_shards(work: Callable[[S], T], shards: Sequence[S], about: str, processes: int = 0) -> Iterator[T]:
    """`work` of every shard, in their order. `processes` 0: one per core; 1, as for one shard: this one. Exceptions of
    `work` are raised here."""
    processes = min(processes or len(os.sched_getaffinity(0)), len(shards))
    progress = Progress(about, len(shards), "shard")
    if processes <= 1:
        with progress:
            for shard in shards:
                yield work(shard)
                progress.advance()
        return
    with progress, ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("forkserver")) as pool:
        futures = [pool.submit(work, shard) for shard in shards]
        try:
            for future in futures:
                yield future.result()
                progress.advance()
        finally:
            for future in futures:
                future.cancel()
