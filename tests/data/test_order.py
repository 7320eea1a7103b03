"""The order of samples as a specification: every one as often as it should, the same from wherever a run begins."""

import hashlib
from collections import Counter
from itertools import pairwise

import numpy
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dsmemvp.data.order import FileOrder, Order, Place, Source

COUNTS = st.lists(st.integers(0, 7), min_size=1, max_size=9).filter(any).map(tuple)
SOURCES = st.lists(st.builds(Source, COUNTS, st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0])), min_size=1, max_size=3)


def epoch(order: Order, number: int) -> list[Place]:
    return [place for step in range(order.steps) for place in order.batch(number * order.steps + step)]


def one(counts, seed=0, block_shards=4) -> Order:
    return Order([Source(tuple(counts))], seed, block_shards, 1)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(COUNTS, st.integers(0, 2**40), st.integers(0, 100), st.integers(1, 10), st.integers(1, 9))
def test_every_sample_comes_exactly_once_per_epoch(counts, seed, number, block_shards, global_batch):
    order = Order([Source(counts)], seed, block_shards, global_batch, "repeat")
    seen = epoch(order, number)
    assert sorted(seen[: order.samples]) == list(FileOrder(counts))
    # what completes the last batch are the epoch's first samples, by name
    completed = seen[order.samples :]
    assert len(completed) == order.repeats < global_batch
    assert completed == [seen[i % order.samples] for i in range(order.repeats)]


@settings(deadline=None, derandomize=True)
@given(COUNTS, st.integers(0, 99), st.integers(1, 9))
def test_where_the_last_partial_batch_is_dropped_nothing_else_changes(counts, number, global_batch):
    dropped = Order([Source(counts)], 3, 2, global_batch, "drop")
    repeated = Order([Source(counts)], 3, 2, global_batch, "repeat")
    assert dropped.steps == sum(counts) // global_batch and dropped.repeats == 0
    assert epoch(dropped, number) == epoch(repeated, number)[: dropped.steps * global_batch]


@settings(deadline=None, derandomize=True)
@given(SOURCES, st.integers(0, 99), st.integers(1, 7))
def test_in_a_mixture_each_data_set_is_gone_through_as_often_as_it_should(sources, seed, block_shards):
    assume(all(source.per_epoch for source in sources))
    order = Order(sources, seed, block_shards, 1)
    for epochs in (1, 2, 4):
        seen = Counter(place for number in range(epochs) for place in epoch(order, number))
        for number, source in enumerate(sources):
            own = [seen[Place(number, p.shard, p.sample)] for p in FileOrder(source.counts)]
            assert sum(own) == epochs * source.per_epoch
            assert max(own) - min(own) <= 1  # no sample a second time more before every other has had its turn


@settings(deadline=None, derandomize=True)
@given(SOURCES, st.integers(1, 7), st.integers(0, 3))
def test_the_data_sets_of_a_mixture_take_turns_evenly(sources, global_batch, number):
    assume(all(source.per_epoch for source in sources))
    order = Order(sources, 5, 2, 1)
    turns = [place.source for place in epoch(order, number)]
    for which, source in enumerate(sources):
        for start in range(0, len(turns) - global_batch):
            fair = global_batch * source.per_epoch / order.samples
            assert abs(turns[start : start + global_batch].count(which) - fair) < len(sources) + 1


@settings(deadline=None, derandomize=True)
@given(SOURCES, st.integers(0, 99), st.integers(1, 5), st.data())
def test_any_step_can_be_asked_for_without_those_before(sources, seed, global_batch, data):
    assume(all(source.per_epoch for source in sources))
    whole = Order(sources, seed, 2, global_batch, "repeat")
    batches = [whole.batch(step) for step in range(3 * whole.steps)]
    for _ in range(5):
        step = data.draw(st.integers(0, len(batches) - 1))
        assert Order(sources, seed, 2, global_batch, "repeat").batch(step) == batches[step]
        assert whole.batch(step) == batches[step]  # neither does going back change anything


@settings(deadline=None, derandomize=True)
@given(COUNTS, st.integers(0, 99), st.integers(0, 99), st.integers(1, 10))
def test_no_more_shards_than_a_block_are_open_at_a_time(counts, seed, number, block_shards):
    seen = epoch(one(counts, seed, block_shards), number)
    first = {place.shard: turn for turn, place in reversed(list(enumerate(seen)))}
    last = {place.shard: turn for turn, place in enumerate(seen)}
    for turn in range(len(seen)):
        assert sum(first[shard] <= turn <= last[shard] for shard in first) <= block_shards


def test_epochs_and_seeds_differ_in_shards_and_inside_blocks():
    orders = [epoch(one([5] * 20, seed), number) for seed in range(3) for number in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    shards = [tuple(dict.fromkeys(place.shard for place in order)) for order in orders]
    assert len(set(shards)) == 9
    inside = [tuple(place.sample for place in order if place.shard == 7) for order in orders]
    assert len(set(inside)) > 1


def test_samples_are_shuffled_across_the_shards_of_a_block():
    order = epoch(one([50, 50], block_shards=2), 0)
    changes = sum(a.shard != b.shard for a, b in pairwise(order))
    assert changes > 20  # 1 if the shards came one after the other; about 50 if shuffled


def _shuffled(text: str, items: list) -> list:
    """The specified shuffle by other means: numpy's Mersenne Twister, seeded with the words of the text's bytes and
    their SHA-512 (CPython's documented seeding), and Fisher and Yates from the end, rejecting."""
    number = int.from_bytes(text.encode() + hashlib.sha512(text.encode()).digest(), "big")
    words = [(number >> shift) & 0xFFFFFFFF for shift in range(0, number.bit_length(), 32)]
    twister = numpy.random.RandomState(words)
    items = list(items)
    for i in range(len(items) - 1, 0, -1):
        bits = (i + 1).bit_length()
        while (j := int.from_bytes(twister.bytes(4), "little") >> (32 - bits)) > i:
            pass
        items[i], items[j] = items[j], items[i]
    return items


def test_the_order_is_the_one_that_every_version_must_keep():
    counts, seed, number = (3, 2, 4), 7, 1
    shards = _shuffled(f"dsmemvp order {seed} 0 {number}", [0, 1, 2])
    expected = []
    for block, own in enumerate((shards[:2], shards[2:])):
        places = [Place(0, shard, i) for shard in own for i in range(counts[shard])]
        expected += _shuffled(f"dsmemvp order {seed} 0 {number} {block}", places)
    order = Order([Source(counts)], seed, 2, 3)
    assert epoch(order, number) == expected
    # the same written out, so that a change of both implementations shows
    assert [(p.shard, p.sample) for p in expected] == GOLDEN
    assert [[p[1:] for p in order.batch(step)] for step in (3, 4, 5)] == [GOLDEN[:3], GOLDEN[3:6], GOLDEN[6:]]


GOLDEN = [(1, 1), (0, 2), (1, 0), (0, 1), (0, 0), (2, 1), (2, 0), (2, 2), (2, 3)]
"""(shard, sample)"""


def test_turns_in_a_mixture_worked_out_by_hand():
    # shares 3 and 2 of 5 turns: floor((3 t + 2) / 5) is 0, 1, 1, 2, 2, 3 at t = 0 .. 5
    order = Order([Source((3,)), Source((2,))], 0, 1, 5)
    assert [place.source for place in order.batch(0)] == [0, 1, 0, 1, 0]


def test_file_order_is_shard_after_shard():
    places = FileOrder([2, 0, 1])
    assert list(places) == places[:] == [(0, 0, 0), (0, 0, 1), (0, 2, 0)] and len(places) == 3
    assert places[-1] == (0, 2, 0) and places[1:9] == [(0, 0, 1), (0, 2, 0)] and places[5:] == []
    with pytest.raises(IndexError):
        places[3]


@pytest.mark.parametrize(
    ("samples", "global_batch", "dropped", "repeated"),
    [(12726, 32, 397, 398), (32, 32, 1, 1), (31, 32, 0, 1), (64, 32, 2, 2), (5, 12, 0, 1)],
)
def test_an_epoch_has_as_many_steps_as_global_batches(samples, global_batch, dropped, repeated):
    assert Order([Source((samples,))], 0, 1, global_batch, "drop").steps == dropped
    assert Order([Source((samples,))], 0, 1, global_batch, "repeat").steps == repeated
