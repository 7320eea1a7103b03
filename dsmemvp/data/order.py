"""The order of samples: a pure function of (samples per shard, seed, epoch) and of nothing else.

Ranks, nodes and workers do not enter; they only take their share of each global batch. A run's place in its data is
therefore one number. Shards are permuted per epoch and samples shuffled within blocks of shards, so that a reader
needs one block at a time.
"""

import random
from collections.abc import Iterator

Place = tuple[int, int]
"""(shard, index of the sample inside it)"""


def epoch_blocks(counts: list[int], seed: int, epoch: int, block_shards: int) -> Iterator[list[Place]]:
    """The epoch's samples, block by block. `counts` is samples per shard. Every sample comes exactly once.

    `random.Random` is seeded with text because its stream is specified for that (CPython keeps it across versions).
    """
    rng = random.Random(f"dsmemvp order {seed} {epoch}")
    shards = list(range(len(counts)))
    rng.shuffle(shards)
    for start in range(0, len(shards), block_shards):
        block = [(shard, i) for shard in shards[start : start + block_shards] for i in range(counts[shard])]
        rng.shuffle(block)
        yield block


def file_order(counts: list[int]) -> Iterator[list[Place]]:
    """All samples as they lie in the shards, for evaluation."""
    for shard, count in enumerate(counts):
        yield [(shard, i) for i in range(count)]


def steps_per_epoch(samples: int, global_batch: int) -> int:
    """Whole global batches in an epoch; the last partial one is dropped (another sample set is left out each epoch)."""
    return samples // global_batch
