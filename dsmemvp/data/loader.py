"""Shards -> this rank's micro-batches, in worker processes.

The order says which samples form a global batch, balancing which of them are this rank's; worker w makes the global
batches w, w + workers, ... of those to come, so the number of workers changes nothing, and prefetched batches need no
state: a run resumes at any step by asking for that step. Encoded bytes are read ahead, decoding comes last.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dsmemvp.data.balancing import CostModel, Weight, balance
from dsmemvp.data.batch import MicroBatch
from dsmemvp.data.collator import Collator
from dsmemvp.data.manifest import Manifest
from dsmemvp.data.order import FileOrder, Order, Place
from dsmemvp.data.stream import Reader
from dsmemvp.data.token_counts import TokenCounts, estimate
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.distributed.stopping import ignore_signals, unsignalled
from dsmemvp.errors import UserError

READ_AHEAD = 64 << 20
"""Bytes of encoded samples that a worker reads in one pass over the shards it needs; what bounds its memory."""


@dataclass(frozen=True)
class Share:
    """Which part of the work is this rank's."""

    rank: int
    world: int
    micro_batch: int
    micro_tokens: int = 0
    """Of training: most tokens of a micro-batch; 0: `micro_batch` decides."""


@dataclass(frozen=True)
class Balancing:
    """By what the samples of a global batch are spread over ranks and micro-steps; the same on every rank."""

    costs: CostModel = field(default_factory=CostModel)
    token_counts: TokenCounts | None = None
    """Exact token counts; None: estimated from the characters that the index has."""


def training_steps(
    manifests: Sequence[Manifest],
    order: Order,
    collator: Collator,
    share: Share,
    steps: range,
    workers: int,
    balancing: Balancing | None = None,
    pinned: bool = False,
) -> Iterator[list[MicroBatch]]:
    """This rank's micro-batches of the global batches `steps`, counted from the start of the run: one list per
    optimizer step. `pinned`: in pinned memory, put there by a thread beside the steps. Raises SampleError, UserError or
    OSError (also out of a worker)."""
    own = _Balanced(order.batch, collator, share, balancing or Balancing())
    return _load(_Steps(manifests, collator, own, steps, order.near_shards, order.steps), workers, pinned)


def evaluation_batches(manifest: Manifest, share: Share) -> range:
    """The batches that all samples make up, by number: batch k is samples k x micro_batch and following in file order,
    for any number of ranks."""
    return range(-(-manifest.samples // share.micro_batch))


def evaluation_steps(
    manifest: Manifest, collator: Collator, share: Share, workers: int, batches: range | np.ndarray | None = None
) -> Iterator[list[MicroBatch]]:
    """The batches of these numbers (None: all), one per rank and step: number s x ranks + r of them is rank r's in step
    s. All ranks take the same number of steps, and where the numbers end, some have an empty batch. So a sample is
    always computed in the same company, and its result does not depend on the number of ranks. A range or an array of
    numbers is as small on its way to the workers."""
    numbers = evaluation_batches(manifest, share) if batches is None else batches
    steps = range(-(-len(numbers) // share.world))
    own = _Whole(FileOrder(manifest.counts), numbers[share.rank :: share.world], share)
    return _load(_Steps([manifest], collator, own, steps, 2), workers)


_Part = list[tuple[int, Place]]
"""What a micro-batch is made from: (place in the global batch, sample)."""


@dataclass(frozen=True)
class _Balanced:
    """This rank's micro-batches of a global batch."""

    batch: Callable[[int], list[Place]]
    collator: Collator
    share: Share
    balancing: Balancing

    def __call__(self, reader: Reader, step: int) -> list[_Part]:
        places, share = self.batch(step), self.share
        weights = [weigh(reader, place, self.collator, self.balancing.token_counts) for place in places]
        parts = balance(weights, self.balancing.costs, share.world, share.micro_batch, share.micro_tokens)[share.rank]
        return [[(i, places[i]) for i in part] for part in parts]


@dataclass(frozen=True)
class _Whole:
    """This rank's one batch of a step of an evaluation; its samples' places are counted from the first of all."""

    places: FileOrder
    numbers: range | np.ndarray
    """Of this rank's batches, one a step; the last step may be without."""
    share: Share

    def __call__(self, reader: Reader, step: int) -> list[_Part]:
        if step >= len(self.numbers):
            return [[]]
        size = self.share.micro_batch
        start = int(self.numbers[step]) * size
        return [list(enumerate(self.places[start : start + size], start))]


@dataclass
class _Steps(IterableDataset):
    manifests: Sequence[Manifest]
    collator: Collator
    own: Callable[[Reader, int], list[_Part]]
    """This rank's micro-batches of a step."""
    steps: range
    near_shards: int
    """How many shards the samples of neighbouring steps lie in."""
    per_epoch: int = 0
    """Steps of an epoch; 0 for an evaluation, which has none."""

    def __iter__(self) -> "Iterator[list[MicroBatch] | UserError | OSError]":
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        tokenizer = Tokenizer(self.collator.tokenizer_path)
        reader = Reader(self.manifests, self.near_shards)
        try:
            for window in self._windows(reader, self.steps[worker::workers]):
                found = reader.read(place for _, parts in window for part in parts for _, place in part)
                for step, parts in window:
                    epoch = step // self.per_epoch if self.per_epoch else 0
                    entries = [[(i, found[place]) for i, place in part] for part in parts]
                    yield [self.collator.batch(tokenizer, own, epoch) for own in entries]
                del found  # before the next window is read, not after
        except (UserError, OSError) as error:
            yield error  # an exception raised in a worker reaches the main process wrapped in a traceback

    def _windows(self, reader: Reader, steps: Iterable[int]) -> Iterator[list[tuple[int, list[_Part]]]]:
        """Steps, by number, that are read together. The first is one alone, for an early start; they grow to READ_AHEAD
        bytes, so that each pass goes forward through the shards of a block."""
        window, size, most = [], 0, 1
        for step in steps:
            own = self.own(reader, step)
            window.append((step, own))
            size += sum(member.size for part in own for _, place in part for member in reader.entry(place).members)
            if size >= most:
                yield window
                window, size, most = [], 0, min(READ_AHEAD, max(1 << 20, 2 * most))
        if window:
            yield window


def weigh(reader: Reader, place: Place, collator: Collator, token_counts: TokenCounts | None = None) -> Weight:
    """What is known of a sample before it is read."""
    characters, image = reader.weight(place)
    image = image and not collator.blind
    tokens = (
        token_counts[reader.number(place)] if token_counts is not None else estimate(characters, collator.max_length)
    )
    places = sum(r.count for r in collator.reserved if image or r.without_image)
    return Weight(tokens + places, image)


def _load(dataset: _Steps, workers: int, pinned: bool = False) -> Iterator[list[MicroBatch]]:
    if workers:
        # the server imports this module once; the workers of all loaders are forked from it
        multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
        # without its server a loader takes its workers for dead
        for helper in (resource_tracker, forkserver):
            with unsignalled():
                helper.ensure_running()
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        # its own generator: making the iterator must not draw from the run's random state
        generator=torch.Generator().manual_seed(0),
        collate_fn=_as_it_is,
        pin_memory=pinned,
        multiprocessing_context=multiprocessing.get_context("forkserver") if workers else None,
        worker_init_fn=_settle,
    )
    source = iter(loader)
    try:
        for step in source:
            if isinstance(step, Exception):
                raise step
            yield step
    finally:
        if workers:
            # The traceback of an error keeps `source` alive. At exit Python would then send SIGTERM to its workers,
            # which ignore it, and wait for them for ever.
            source._shutdown_workers()  # type: ignore[attr-defined]


def _as_it_is(step: list[MicroBatch]) -> list[MicroBatch]:
    return step


def _settle(worker: int) -> None:
    """A worker leaves the cores to the others, and signals to its rank, which may need it for what is left. It ends
    with its rank: its parent is the server, which waits for the workers in turn."""
    torch.set_num_threads(1)
    ignore_signals()
    threading.Thread(target=_end_with_rank, daemon=True).start()


def _end_with_rank() -> None:
    rank = multiprocessing.parent_process()
    if rank is not None:
        rank.join()
        os._exit(1)
