"""Ranks that meet, as threads of this process."""

import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from dsmemvp.distributed import rendezvous
from dsmemvp.distributed.rendezvous import meet
from dsmemvp.distributed.stopping import Stop, Stopped


class Meeting:
    def __init__(self, ranks: int):
        self.world = ranks
        self.stops = [Stop() for _ in range(ranks)]
        self._threads = ThreadPoolExecutor(ranks)

    def come(self, rank: int, seconds: float = 30) -> Future:
        return self._threads.submit(meet, rank, self.world, seconds, self.stops[rank])

    def ask(self, rank: int) -> None:
        self.stops[rank].asked, self.stops[rank].since = True, time.monotonic()


@pytest.fixture
def meeting(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(probe.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    return Meeting(3)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_ranks_start_when_the_last_one_has_come(meeting, order):
    first, second = meeting.come(order[0]), meeting.come(order[1])
    time.sleep(0.5)
    assert not first.done() and not second.done()
    found = [future.result(timeout=10) for future in (first, second, meeting.come(order[2]))]
    assert {address for _, address in found} <= {"127.0.0.1", "::1"}
    stores = [store for store, _ in found]
    stores[0].set("key", "value")
    assert [store.get("key") for store in stores] == [b"value"] * 3


@pytest.mark.parametrize("asked", [0, 1])
def test_where_one_is_asked_to_end_all_end_those_that_come_later_too(meeting, asked):
    coming = [meeting.come(0), meeting.come(1)]
    time.sleep(0.3)
    meeting.ask(asked)
    time.sleep(0.3)
    for future in (*coming, meeting.come(2)):
        with pytest.raises(Stopped):
            future.result(timeout=10)


def test_one_that_was_asked_before_it_came_tells_the_others(meeting):
    coming = [meeting.come(0), meeting.come(1)]
    meeting.ask(2)
    for future in (*coming, meeting.come(2)):
        with pytest.raises(Stopped):
            future.result(timeout=10)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_was_asked_does_not_wait_long_for_others(meeting, rank, monkeypatch):
    monkeypatch.setattr(rendezvous, "LEAVE", 0.5)
    alone = meeting.come(rank)
    meeting.ask(rank)
    with pytest.raises(Stopped):
        alone.result(timeout=10)


def test_asked_when_all_have_come_it_starts_with_them(meeting):
    """It is for the watch to end them then: one that left alone would leave the others waiting."""
    stores = [future.result(timeout=10)[0] for future in [meeting.come(rank) for rank in range(3)]]
    meeting.ask(1)
    assert len(stores) == 3 and meeting.come(1).result(timeout=10)


def test_ranks_that_do_not_come_are_named(meeting):
    with pytest.raises(TimeoutError, match=r"2 of 3 ranks have joined in time; missing: 1$"):
        coming = [meeting.come(rank, seconds=0.5) for rank in (0, 2)]
        coming[0].result(timeout=10)


def test_a_rank_0_that_does_not_come_is_named(meeting):
    with pytest.raises(TimeoutError, match="rank 0 was not reached at localhost"):
        meeting.come(1, seconds=0.3).result(timeout=10)
