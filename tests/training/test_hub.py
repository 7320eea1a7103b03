"""Verdicts of the first rank, from words and times that are made here."""

import json
import socket
import time
from dataclasses import asdict

import pytest

from dsmemvp.training.hub import GATHER, Hub, Word, _Line

SILENCE, STANDSTILL = 10.0, 100.0


@pytest.fixture
def hub(monkeypatch):
    """Of four ranks, whose clock begins at 1000."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with socket.socket() as listener:
        hub = Hub(listener, 4, SILENCE, STANDSTILL)
        hub.lines, hub.clock = [_Line() for _ in range(4)], clock
        yield hub


def _say(hub, rank, moves=1, step=7, doing="update", where="engine.py:1 update in all_reduce", **more):
    hub._hear(hub.lines[rank], Word(rank, f"n{rank // 2}", moves, step, doing, where, **more))


def _after(hub, seconds):
    hub.clock[0] = 1000.0 + seconds
    return hub._verdict(hub.clock[0])


def test_ranks_that_are_heard_and_move_have_no_verdict(hub):
    for second in range(0, 200, 5):
        hub.clock[0] = 1000.0 + second
        for rank in range(4):
            _say(hub, rank, moves=second)
        assert _after(hub, second) is None


def test_a_silent_rank_is_named_with_its_host_step_and_what_the_others_wait_in(hub):
    _say(hub, 2, where="engine.py:2 forward")
    for second in (0, 9.9, 10.1):
        hub.clock[0] = 1000.0 + second
        for rank in (0, 1, 3):
            _say(hub, rank, doing="saving" if rank == 3 else "update")
        verdict = _after(hub, second)
        assert (verdict is None) == (second < 10)
    assert verdict == (
        "no sign of life for 10 s of rank 2 on n1 (after step 7, update at engine.py:2 forward)"
        "\n  rank 0, 1: update at engine.py:1 update in all_reduce"
        "\n  rank 3: saving at engine.py:1 update in all_reduce",
        70,
    )


def test_a_rank_that_never_spoke_is_missed_too(hub):
    hub.clock[0] = 1009.0
    for rank in (0, 1, 2):
        _say(hub, rank)
    assert _after(hub, 9.9) is None
    assert "no sign of life for 10 s of rank 3 on a host not known yet" in _after(hub, 10.1)[0]


@pytest.mark.parametrize(
    ("moves", "waiting", "named"),
    [
        ([5, 5, 4, 5], [True] * 4, [2]),
        ([5, 5, 5, 5], [True, True, False, True], [2]),
        ([5, 5, 5, 5], [True] * 4, [0, 1, 2, 3]),
    ],
)
def test_of_ranks_that_stand_still_the_one_is_named_that_the_others_wait_for(hub, moves, waiting, named):
    for second in (0, 95, 101):
        hub.clock[0] = 1000.0 + second
        for rank in range(4):
            _say(hub, rank, moves=moves[rank], waiting=waiting[rank])
    verdict, code = _after(hub, 101)
    first, *rest = verdict.split("\n")
    assert code == 70 and first.startswith("no rank has moved on for 100 s; furthest behind: ")
    assert [rank for rank in range(4) if f"rank {rank} on" in first] == named
    assert bool(rest) == (len(named) < 4)


def test_a_rank_that_is_done_may_be_silent(hub):
    _say(hub, 3, bye=True)
    for second in (0, 9, 18, 27):
        hub.clock[0] = 1000.0 + second
        for rank in range(3):
            _say(hub, rank)
    assert _after(hub, 30) is None


def test_an_error_of_the_user_s_counts_for_more_than_what_follows_from_it(hub):
    for rank in range(4):
        _say(hub, rank)
    _say(hub, 0, error="Connection closed by peer", code=70, follows=True)
    _say(hub, 1, error="the sample is odd", code=1)
    assert _after(hub, GATHER - 0.1) is None  # others may have more to say
    assert _after(hub, GATHER + 0.1) == ("error: the sample is odd", 1)


def test_the_first_cause_is_told_and_not_what_followed(hub):
    for rank in range(4):
        _say(hub, rank)
    _say(hub, 0, error="Connection closed by peer", code=70, follows=True)
    _say(hub, 3, error="RuntimeError: out of memory", code=70)
    verdict, code = _after(hub, GATHER + 0.1)
    assert code == 70 and verdict.startswith("rank 3 on n1 (after step 7, update at ")
    assert ") failed: RuntimeError: out of memory\n  rank 0, 1, 2: update" in verdict


def _connected(hub, *words):
    """A line to the hub that has said these words and is closed, unread."""
    near, far = socket.socketpair()
    hub._lines[near] = _Line()
    for word in words:
        far.sendall(word if isinstance(word, bytes) else json.dumps(asdict(word)).encode() + b"\n")
    far.close()
    return near


def test_a_line_that_breaks_is_a_death_unless_the_rank_was_done(hub):
    for rank in range(4):
        _say(hub, rank)
    for word in (Word(1, "n0", bye=True), Word(2, "n1", 9, 8, "saving")):
        line = _connected(hub, word)
        assert hub._receive(line) and not hub._receive(line)
    verdict, code = _after(hub, GATHER + 0.1)
    assert code == 70 and verdict.startswith("rank 2 on n1 (after step 8, saving) died\n  rank 0, 3: update")


@pytest.mark.parametrize(
    "text", [b"GET / HTTP/1.1\n\n", b"\xff\n", b"5\n", b'{"rank": 0}\n', b'{"rank": 9, "host": "x"}\n']
)
def test_strangers_are_hung_up_on(hub, text):
    for rank in range(4):
        _say(hub, rank)
    assert not hub._receive(_connected(hub, text))
    assert _after(hub, 5) is None


def test_words_may_come_in_pieces(hub):
    near, far = socket.socketpair()
    hub._lines[near] = _Line()
    text = json.dumps(asdict(Word(1, "n0", 3, 2, "saving"))).encode() + b"\n"
    for piece in (text[:5], text[5:-1], text[-1:]):
        far.sendall(piece)
        assert hub._receive(near)
    assert hub._ranks[1].word.doing == "saving"
    near.close(), far.close()
