"""The order of samples: every one once per epoch, a pure function of (counts, seed, epoch)."""

from itertools import chain, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmemvp.data.order import epoch_blocks, file_order, steps_per_epoch

COUNTS = st.lists(st.integers(0, 6), max_size=12)


def whole(counts, seed=0, epoch=0, block_shards=4):
    return list(chain.from_iterable(epoch_blocks(counts, seed, epoch, block_shards)))


@settings(deadline=None, derandomize=True)
@given(COUNTS, st.integers(0, 2**40), st.integers(0, 100), st.integers(1, 13))
def test_every_sample_comes_exactly_once_per_epoch(counts, seed, epoch, block_shards):
    everyone = [(shard, i) for shard, count in enumerate(counts) for i in range(count)]
    assert sorted(whole(counts, seed, epoch, block_shards)) == everyone


@settings(deadline=None, derandomize=True)
@given(COUNTS, st.integers(0, 2**40), st.integers(0, 100), st.integers(1, 13))
def test_the_same_numbers_give_the_same_order(counts, seed, epoch, block_shards):
    assert whole(counts, seed, epoch, block_shards) == whole(list(counts), seed, epoch, block_shards)


@settings(deadline=None, derandomize=True)
@given(COUNTS, st.integers(0, 99), st.integers(0, 99), st.integers(1, 13))
def test_a_block_holds_the_samples_of_its_own_shards_and_no_more_shards_than_asked(counts, seed, epoch, block_shards):
    seen = set()
    blocks = list(epoch_blocks(counts, seed, epoch, block_shards))
    assert len(blocks) == -(-len(counts) // block_shards)
    for block in blocks:
        shards = {shard for shard, _ in block}
        assert len(shards) <= block_shards and not shards & seen
        seen |= shards


def test_epochs_and_seeds_differ_in_shards_and_inside_blocks():
    counts = [5] * 20
    orders = [whole(counts, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    shards = [tuple(dict.fromkeys(shard for shard, _ in order)) for order in orders]
    assert len(set(shards)) == 9
    inside = [tuple(i for shard, i in order if shard == 7) for order in orders]
    assert len(set(inside)) > 1


def test_samples_are_shuffled_across_the_shards_of_a_block():
    order = whole([50, 50], block_shards=2)
    changes = sum(a[0] != b[0] for a, b in pairwise(order))
    assert changes > 20  # 1 if the shards came one after the other; about 50 if shuffled


def test_the_order_is_the_one_that_earlier_versions_used():
    # Not copied from our output: worked out with numpy's Mersenne Twister, seeded with the words of the text's bytes
    # followed by their SHA-512 (CPython's documented seeding), and a Fisher-Yates shuffle from the end that rejects.
    first, second = epoch_blocks([3, 2, 4], seed=7, epoch=1, block_shards=2)
    assert first == [(0, 1), (0, 0), (0, 2), (1, 0), (1, 1)]
    assert second == [(2, 3), (2, 2), (2, 0), (2, 1)]


def test_file_order_is_shard_after_shard():
    assert list(file_order([2, 0, 1])) == [[(0, 0), (0, 1)], [], [(2, 0)]]


@pytest.mark.parametrize(
    ("samples", "global_batch", "steps"), [(12726, 32, 397), (32, 32, 1), (31, 32, 0), (64, 32, 2), (0, 4, 0)]
)
def test_an_epoch_has_as_many_steps_as_whole_global_batches(samples, global_batch, steps):
    assert steps_per_epoch(samples, global_batch) == steps
