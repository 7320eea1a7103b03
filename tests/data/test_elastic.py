"""A run that is stopped anywhere and resumes with other ranks and workers sees what an uninterrupted one sees."""

import multiprocessing
from collections import Counter
from dataclasses import dataclass

import pytest
from making import good_rows
from torch.utils.data import get_worker_info

from data_prep.shards import write_shards
from dsmemvp.data.loader import Share, training_steps
from dsmemvp.data.manifest import Manifest
from dsmemvp.data.order import Order, Source


@dataclass(frozen=True)
class Numbers:
    """Stands in for a `Collator`: a batch is the (place, running number) of its samples, and who made it."""

    tokenizer_path: str
    blind: bool = False
    reserved: tuple = ()
    max_length: int = 200

    def batch(self, tokenizer, entries, epoch=0):
        info = get_worker_info()
        return [(place, entry.index) for place, entry in entries], info.id if info else -1


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """(samples, shards) -> the manifest of such a data set, each written once."""
    made: dict[tuple[int, int], Manifest] = {}

    def get(samples: int, shards: int) -> Manifest:
        if (samples, shards) not in made:
            folder = tmp_path_factory.mktemp(f"{samples}-{shards}")
            made[samples, shards] = write_shards(good_rows(samples), folder, "train", per_shard=-(-samples // shards))
        return made[samples, shards]

    return get


# samples and shards of each data set, passes, global batch, last batch,
# and the phases of the run: (ranks, workers, until which part of two epochs)
GRID = [
    ([(40, 4)], [1.0], 8, "drop", [(1, 0, 1.0)]),
    ([(40, 4)], [1.0], 8, "drop", [(2, 1, 0.3), (1, 0, 0.6), (8, 0, 1.0)]),
    ([(41, 5)], [1.0], 8, "repeat", [(4, 0, 0.2), (2, 3, 0.5), (1, 2, 0.9), (8, 0, 1.0)]),
    ([(41, 5)], [1.0], 6, "drop", [(3, 0, 0.1), (6, 0, 0.5), (2, 2, 0.8), (1, 1, 1.0)]),
    ([(30, 30)], [1.0], 10, "drop", [(5, 0, 0.5), (2, 0, 1.0)]),
    ([(30, 1)], [1.0], 7, "repeat", [(7, 0, 0.4), (1, 3, 1.0)]),  # fewer shards than workers
    ([(5, 2)], [1.0], 12, "repeat", [(4, 0, 0.5), (3, 0, 1.0)]),  # fewer samples than one global batch
    ([(40, 4), (23, 3)], [1.0, 2.0], 6, "repeat", [(2, 1, 0.25), (3, 0, 0.7), (1, 2, 1.0)]),
    ([(40, 4), (23, 3), (30, 1)], [1.0, 0.5, 1.5], 8, "drop", [(8, 0, 0.4), (4, 0, 0.6), (2, 2, 1.0)]),
]


def _phase(data, order: Order, ranks: int, workers: int, steps: range) -> list[list[int]]:
    """The running numbers of every global batch that `ranks` ranks make together, checked for equal work."""
    collator, micro_batch = Numbers(data[1]), order.global_batch // ranks
    loaders = [
        list(training_steps(data[0], order, collator, Share(r, ranks, micro_batch), steps, workers))
        for r in range(ranks)
    ]
    assert {len(loader) for loader in loaders} == {len(steps)}
    batches = []
    for number, shares in enumerate(zip(*loaders, strict=True)):
        assert {len(share) for share in shares} == {1}
        for ((pairs, worker),) in shares:
            assert pairs  # how many there are depends on what they cost
            assert worker == (number % workers if workers else -1)
        places = sorted(pair for ((pairs, _),) in shares for pair in pairs)
        assert [place for place, _ in places] == list(range(order.global_batch))
        batches.append([number for _, number in places])
    return batches


@pytest.mark.parametrize(("sets", "passes", "global_batch", "last_batch", "phases"), GRID)
def test_every_global_batch_is_the_same_whatever_happened_before(
    manifests, tokenizer_path, sets, passes, global_batch, last_batch, phases
):
    data = [manifests(*each) for each in sets], str(tokenizer_path)
    sources = [Source(manifest.counts, often) for manifest, often in zip(data[0], passes, strict=True)]
    order = Order(sources, 11, 2, global_batch, last_batch)
    total, first, seen = 2 * order.steps, 0, []
    for ranks, workers, until in phases:
        steps = range(first, round(until * total))
        seen += _phase(data, order, ranks, workers, steps)
        first = steps.stop
    firsts = [sum(m.samples for m in data[0][:number]) for number in range(len(sets))]
    shards = [[sum(s.counts[:shard]) for shard in range(len(s.counts))] for s in sources]
    expected = [
        [firsts[p.source] + shards[p.source][p.shard] + p.sample for p in order.batch(step)] for step in range(total)
    ]
    assert seen == expected
    if passes == [1.0] and last_batch == "repeat":
        for epoch in (seen[: order.steps], seen[order.steps :]):
            times = Counter(number for batch in epoch for number in batch)
            assert len(times) == order.samples and sum(times.values()) - order.samples == order.repeats


def test_no_worker_is_left_behind(manifests, tokenizer_path):
    order = Order([Source(manifests(40, 4).counts)], 1, 2, 8)
    source = training_steps([manifests(40, 4)], order, Numbers(str(tokenizer_path)), Share(0, 1, 8), range(50), 2)
    next(source)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    source.close()
    assert not [worker for worker in multiprocessing.active_children() if worker in workers]
