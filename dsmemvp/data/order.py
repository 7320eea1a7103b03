"""The order of samples: a pure function of the shards' sample counts, the seed and the recipe's batch settings.

It knows nothing of ranks, workers or nodes, and it can be asked for any step without the steps before it, so a run's
place in its data is one number: the steps taken (times the global batch: the samples consumed).

- One data set. In each of its own epochs its shards are permuted and cut into blocks of `block_shards`; the samples of
  a block are shuffled. A reader therefore needs one block at a time, and every sample comes exactly once per epoch.
- Several data sets. Each has `passes`: how often it is gone through in one epoch of the run (0.5: another half of it
  in every epoch; 2: twice). The data sets take turns as evenly as whole numbers allow, so that every global batch has
  nearly the same composition; each resumes in its own order where it stopped the epoch before.
- Global batch g is the g-th run of `global_batch` samples of the epoch. The last partial one is dropped, or completed
  with the first samples of the same epoch, which are then seen twice in it.

`random.Random` is seeded with text, whose stream CPython keeps across versions. tests/data/test_order.py pins one case.
"""

import bisect
import itertools
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

import numpy as np


class Place(NamedTuple):
    """Where a sample lies."""

    source: int
    """Number of the data set."""
    shard: int
    sample: int
    """Running number inside the shard."""


@dataclass(frozen=True)
class Source:
    """One data set."""

    counts: tuple[int, ...]
    """Samples of each shard."""
    passes: float = 1.0
    """How often it is gone through in one epoch of the run."""

    @property
    def samples(self) -> int:
        return sum(self.counts)

    @property
    def per_epoch(self) -> int:
        """Samples of it in one epoch of the run."""
        return round(self.samples * self.passes)


class Order:
    """The order of one run. What it remembers of the last blocks only saves time."""

    def __init__(
        self,
        sources: Sequence[Source],
        seed: int,
        block_shards: int,
        global_batch: int,
        last_batch: Literal["drop", "repeat"] = "drop",
    ):
        self.sources, self.global_batch = tuple(sources), global_batch
        self.near_shards = 2 * block_shards * len(self.sources)
        """Within how many shards the samples of neighbouring steps lie: a block of each data set, and the next."""
        self.samples = sum(source.per_epoch for source in sources)
        """Samples in one epoch."""
        self.steps = self.samples // global_batch if last_batch == "drop" else -(-self.samples // global_batch)
        """Global batches in one epoch."""
        self._streams = [_Stream(number, source, seed, block_shards) for number, source in enumerate(sources)]
        shares = [source.per_epoch for source in sources]
        self._shares = shares
        self._rests = [sum(shares[number:]) for number in range(len(shares))]

    @property
    def repeats(self) -> int:
        """Samples that complete the last global batch of every epoch; 0 if it is dropped or whole."""
        return max(0, self.steps * self.global_batch - self.samples)

    def batch(self, step: int) -> list[Place]:
        """The samples of a global batch, in order; `step` counts from the start of the run."""
        epoch, step = divmod(step, self.steps)
        start = step * self.global_batch
        return [self.place(epoch, turn % self.samples) for turn in range(start, start + self.global_batch)]

    def place(self, epoch: int, turn: int) -> Place:
        """The sample whose turn it is: `turn` counts from 0 in each epoch of the run."""
        number, own = self._taken(turn)
        return self._streams[number].place(epoch * self._shares[number] + own)

    def _taken(self, turn: int) -> tuple[int, int]:
        """Whose turn it is, and how many samples that data set has given before in this epoch.

        The first data set is spread evenly over all turns, the second over those the first leaves, and so on; each
        count is a floor, so it never falls and ends at the data set's share.
        """
        for number, (share, rest) in enumerate(zip(self._shares, self._rests, strict=True)):
            before, after = (((turn + more) * share + rest // 2) // rest for more in (0, 1))
            if after > before:
                return number, before
            turn -= before
        raise AssertionError("the last data set takes every turn that is left")


class _Stream:
    """One data set's samples without end, epoch after epoch of its own."""

    def __init__(self, number: int, source: Source, seed: int, block_shards: int):
        self._number, self._counts, self._seed, self._block_shards = number, source.counts, seed, block_shards
        self._samples = source.samples
        self._epoch: tuple[int, array[int], list[int]] = (-1, array("I"), [])
        self._block: tuple[int, int, array[int], list[int], array[int]] = (-1, -1, array("I"), [], array("I"))

    def place(self, turn: int) -> Place:
        epoch, turn = divmod(turn, self._samples)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, *self._permuted(epoch))
        _, shards, starts = self._epoch
        block = bisect.bisect_right(starts, turn) - 1
        if self._block[:2] != (epoch, block):
            own = shards[block * self._block_shards : (block + 1) * self._block_shards]
            self._block = (epoch, block, own, *self._shuffled(epoch, block, own))
        own, ends, numbers = self._block[2:]
        number = numbers[turn - starts[block]]
        at = bisect.bisect_right(ends, number)
        return Place(self._number, own[at], number - (ends[at - 1] if at else 0))

    def _permuted(self, epoch: int) -> "tuple[array[int], list[int]]":
        """The shards of an epoch in their order, and at which sample each block of them starts."""
        shards = array("I", range(len(self._counts)))
        random.Random(f"dsmemvp order {self._seed} {self._number} {epoch}").shuffle(shards)
        ends = list(itertools.accumulate(self._counts[shard] for shard in shards))
        return shards, [0, *ends[self._block_shards - 1 : -1 : self._block_shards]]

    def _shuffled(self, epoch: int, block: int, shards: "array[int]") -> "tuple[list[int], array[int]]":
        """Where each shard ends if the block's samples are counted through; and those numbers, shuffled. An array takes
        four bytes for each, a list of places a hundred."""
        ends = list(itertools.accumulate(self._counts[shard] for shard in shards))
        numbers = array("I", range(ends[-1]))
        random.Random(f"dsmemvp order {self._seed} {self._number} {epoch} {block}").shuffle(numbers)
        return ends, numbers


class FileOrder(Sequence[Place]):
    """All samples of one data set as they lie in its shards, for evaluation: worked out as they are asked for."""

    def __init__(self, counts: Sequence[int]):
        self._counts = np.array(counts, dtype=np.int64)
        self._ends = np.cumsum(self._counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, at: int) -> Place: ...
    @overload
    def __getitem__(self, at: slice) -> list[Place]: ...
    def __getitem__(self, at: int | slice) -> Place | list[Place]:
        if not isinstance(at, slice):
            at = range(len(self))[at]
            return self[at : at + 1][0]
        numbers = np.arange(*at.indices(len(self)))
        shards = np.searchsorted(self._ends, numbers, side="right")
        samples = numbers - (self._ends - self._counts)[shards]
        return [Place(0, shard, sample) for shard, sample in zip(shards.tolist(), samples.tolist(), strict=True)]
