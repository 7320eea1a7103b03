"""Verdicts of rank 0, from heartbeats and times that are made here."""

import json
from dataclasses import asdict

import pytest

from dsmemvp.fault_tolerance.failure_detector import GATHER, FailureDetector
from dsmemvp.fault_tolerance.heartbeat_protocol import LONGEST_TEXT, RankStatus, read_status

SILENCE, STANDSTILL = 10.0, 100.0


@pytest.fixture
def detector():
    """Of four ranks, from time 0 on."""
    return FailureDetector(4, SILENCE, STANDSTILL, 0.0)


def _hear(detector, now, *ranks, moves=1, step=7, doing="update", where="engine.py:1 update in all_reduce", **more):
    for rank in ranks:
        detector.hear(RankStatus(rank, f"n{rank // 2}", moves, step, doing, where, **more), now)


def test_ranks_that_are_heard_and_move_have_no_verdict(detector):
    for second in range(0, 200, 5):
        _hear(detector, second, 0, 1, 2, 3, moves=second)
        assert detector.verdict(second) is None


def test_a_silent_rank_is_named_with_its_host_step_and_what_the_others_wait_in(detector):
    _hear(detector, 0, 2, where="engine.py:2 forward")
    for second in (0, 9.9, 10.1):
        _hear(detector, second, 0, 1)
        _hear(detector, second, 3, doing="saving")
        verdict = detector.verdict(second)
        assert (verdict is None) == (second < 10)
    assert verdict == (
        "no sign of life for 10 s of rank 2 on n1 (after step 7, update at engine.py:2 forward)"
        "\n  rank 0, 1: update at engine.py:1 update in all_reduce"
        "\n  rank 3: saving at engine.py:1 update in all_reduce",
        70,
    )


def test_a_rank_that_never_spoke_is_missed_too(detector):
    _hear(detector, 9, 0, 1, 2)
    assert detector.verdict(9.9) is None
    assert "no sign of life for 10 s of rank 3 on a host not known yet" in detector.verdict(10.1)[0]


def test_what_was_missed_while_this_process_was_stopped_is_forgiven(detector):
    _hear(detector, 0, 0, 1, 2, 3)
    detector.forgive(50)
    assert detector.verdict(59) is None and detector.verdict(61) is not None


@pytest.mark.parametrize(
    ("moves", "waiting", "named"),
    [
        ([5, 5, 4, 5], [True] * 4, [2]),
        ([5, 5, 5, 5], [True, True, False, True], [2]),
        ([5, 5, 5, 5], [True] * 4, [0, 1, 2, 3]),
    ],
)
def test_of_ranks_that_stand_still_the_one_is_named_that_the_others_wait_for(detector, moves, waiting, named):
    for second in (0, 95, 101):
        for rank in range(4):
            _hear(detector, second, rank, moves=moves[rank], waiting=waiting[rank])
    verdict, code = detector.verdict(101)
    first, *rest = verdict.split("\n")
    assert code == 70 and first.startswith("no rank has moved on for 100 s; furthest behind: ")
    assert [rank for rank in range(4) if f"rank {rank} on" in first] == named
    assert bool(rest) == (len(named) < 4)


def test_a_rank_that_is_done_may_be_silent_and_its_connection_close(detector):
    _hear(detector, 0, 3, bye=True)
    detector.lose(3, 1)
    for second in (0, 9, 18, 27):
        _hear(detector, second, 0, 1, 2)
    assert detector.verdict(30) is None and not detector.done
    _hear(detector, 30, 0, 1, 2, bye=True)
    _hear(detector, 31, 0, bye=False)
    assert detector.done


def test_an_error_of_the_user_s_counts_for_more_than_what_follows_from_it(detector):
    _hear(detector, 0, 0, 1, 2, 3)
    _hear(detector, 0, 0, error="Connection closed by peer", code=70, follows=True)
    _hear(detector, 0, 1, error="the sample is odd", code=1)
    assert detector.verdict(GATHER - 0.1) is None  # others may have more to say
    assert detector.verdict(GATHER + 0.1) == ("error: the sample is odd", 1)


def test_the_first_cause_is_told_and_not_what_followed(detector):
    _hear(detector, 0, 0, 1, 2, 3)
    _hear(detector, 0, 0, error="Connection closed by peer", code=70, follows=True)
    _hear(detector, 0, 3, error="RuntimeError: out of memory", code=70)
    verdict, code = detector.verdict(GATHER + 0.1)
    assert code == 70 and verdict.startswith("rank 3 on n1 (after step 7, update at ")
    assert ") failed: RuntimeError: out of memory\n  rank 0, 1, 2: update" in verdict


def test_a_rank_that_dies_is_named_and_one_that_is_done_is_not_missed(detector):
    _hear(detector, 0, 0, 1, 2, 3)
    _hear(detector, 0, 1, bye=True)
    _hear(detector, 0, 2, step=8, doing="saving", where="")
    detector.lose(1, 0)
    detector.lose(2, 0)
    verdict, code = detector.verdict(GATHER + 0.1)
    assert code == 70 and verdict.startswith("rank 2 on n1 (after step 8, saving) died\n  rank 0, 3: update")


def test_a_run_that_was_asked_to_end_is_started_again_whatever_followed(detector):
    _hear(detector, 0, 0, 1, 2, 3)
    _hear(detector, 0, 1, error="was asked to end", code=75)
    _hear(detector, 1, 1, error="Connection closed by peer", code=70, follows=True)
    detector.lose(2, 1)
    assert detector.verdict(GATHER + 0.1) == ("rank 1 on n0 was asked to end", 75)


def test_a_heartbeat_is_read_as_it_was_sent_but_for_texts_without_end():
    beat = RankStatus(1, "n0", 3, 2, "saving", error="\n\ud800" * LONGEST_TEXT, code=70)
    line = beat.line()
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    read = read_status(line, 1)
    assert asdict(read) == asdict(beat) | {"error": beat.error[:LONGEST_TEXT]}


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 0},
        {"rank": True},
        {"moves": -1},
        {"moves": 1.5},
        {"moves": 10**30},
        {"step": "7"},
        {"step": None},
        {"doing": ["update"]},
        {"where": "x" * (LONGEST_TEXT + 1)},
        {"bye": 1},
        {"more": 1},
    ],
)
def test_a_heartbeat_with_another_value_is_refused(change):
    with pytest.raises(ValueError, match="a heartbeat of rank 1"):
        read_status(json.dumps(asdict(RankStatus(1, "n0")) | change).encode(), 1)


@pytest.mark.parametrize("line", [b"", b"5", b"\xff", b"{}", b'{"rank": 1, "host": "n0"}', b"[" * 100_000, b"9" * 5000])
def test_what_is_no_heartbeat_is_refused(line):
    with pytest.raises(ValueError, match="a heartbeat of rank 1"):
        read_status(line, 1)
