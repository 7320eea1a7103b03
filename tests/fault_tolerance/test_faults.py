"""Bad days on one machine: whatever goes wrong, the run gets to its end, and nothing is lost but the steps since the
last save. Every start of a day has its own fault; the last one has none."""

import re

import pytest
from faulty import numbers, rows, run, steps

KILLED = -9


def _check_whole(folder, uninterrupted):
    """Losses of all steps and the order of samples, as if nothing had been."""
    assert numbers(folder) == numbers(uninterrupted)
    assert list(numbers(folder)) == list(range(1, 13))
    assert numbers(folder, "loss/validation") == numbers(uninterrupted, "loss/validation")
    seen = rows(folder, "order")
    assert seen == rows(uninterrupted, "order")
    for epoch in (seen[:6], seen[6:]):
        assert sorted(n for row in epoch for n in row["samples"]) == list(range(48))
    assert steps(folder)[-1] == 12 and not list((folder / "checkpoints").glob("[!s]*"))


def _went_on_after(ended):
    found = re.search(r"resuming after step (\d+)", ended.said[0])
    return int(found[1]) if found else 0


def _day(starts, small_run, uninterrupted, tmp_path, *settings, **more):
    """`starts` are (fault, rank, exit codes of ranks 0 and 1, what is said, last step saved)."""
    arguments = ["train", *small_run, f"output={tmp_path}", *settings]
    saved = 0
    for fault, rank, codes, words, last in starts:
        more["fresh"] = fault.startswith("import") or "group" in fault
        ended = run(arguments, tmp_path / "logs", fault, rank, **more)
        assert ended.codes == codes, f"{fault} on rank {rank}\n{ended.text}"
        assert _went_on_after(ended) in (saved, 0), ended.text  # 0: it did not get so far as to say it
        assert re.search(words, ended.text), f"{words} of {fault}\n{ended.text}"
        assert "Traceback" not in ended.text or "RuntimeError" in fault, ended.text
        saved = last
    ended = run(arguments, tmp_path / "logs")
    assert ended.codes == [0, 0] and _went_on_after(ended) == saved, ended.text
    _check_whole(tmp_path / "demo", uninterrupted)
    return ended


def _died(rank, step, place, other):
    """What is said of a rank, and of the one that waited for it."""
    return rf"rank {rank} on \S+ \(after step {step}, {place} at .*\) died\n  rank {1 - rank}: {other} at \S+:\d+ \w+"


@pytest.mark.ranks
def test_killed_between_the_parts_of_an_update(small_run, uninterrupted, tmp_path):
    day = [("update:KILL:10", 1, [70, KILLED], _died(1, 4, "update", "update"), 4)]
    _day(day, small_run, uninterrupted, tmp_path)


@pytest.mark.faults
def test_killed_while_computing(small_run, uninterrupted, tmp_path):
    both = "forward and backward"
    away = "rank 0 has died, or ended without a word\n  ending rank 1"
    day = [
        ("loading:KILL:1", 1, [70, KILLED], _died(1, 0, "loading", "loading"), 0),
        ("forward:KILL:6", 1, [70, KILLED], _died(1, 2, both, both), 2),
        ("backward:KILL:6", 0, [KILLED, 70], rf"{away} on \S+, after step 4, {both}", 4),
        ("validating:KILL:2", 1, [70, KILLED], _died(1, 6, "validating", "validating"), 4),
        ("update:KILL:7", 0, [KILLED, 70], rf"{away} on \S+, after step 7, update", 6),
        ("validating:KILL:3", 0, [KILLED, 70], rf"{away} on \S+, after step 12, validating", 10),
    ]
    _day(day, small_run, uninterrupted, tmp_path)


@pytest.mark.faults
def test_killed_in_every_phase_of_a_save(small_run, uninterrupted, tmp_path):
    away = "rank 0 has died, or ended without a word\n  ending rank 1"
    day = [
        ("saving:KILL:1", 1, [70, KILLED], _died(1, 2, "saving", "saving"), 0),
        ("save-write:KILL:1", 0, [KILLED, 70], away, 0),
        ("save-tensors:KILL:2", 0, [KILLED, 70], away, 0),
        ("save-flush:KILL:1", 0, [KILLED, 70], away, 0),
        ("save-rename:KILL:2", 0, [KILLED, 70], away, 2),
        ("save-renamed:KILL:1", 0, [KILLED, 70], away, 4),
        ("prune:KILL:1", 0, [KILLED, 70], away, 8),  # 3 are kept: the one of step 2 goes when that of step 8 is there
    ]
    _day(day, small_run, uninterrupted, tmp_path)


@pytest.mark.faults
def test_a_rank_that_stops_or_hangs_is_named_within_its_time(small_run, uninterrupted, tmp_path):
    silent = r"no sign of life for 6 s of rank 1 on \S+ \(after step \d, .*\)\n  rank 0: update"
    stuck = r"no rank has moved on for 8 s; furthest behind: rank 1 on \S+ \(after step 7, update at .* in _act\)"
    day = [
        ("update:STOP:8", 1, [70, KILLED], silent, 2),
        ("update:STOP:8", 0, [KILLED, 70], r"rank 0 has given no sign of life for [6-9] s\n  ending rank 1", 4),
        ("update:hang:7", 1, [70, 70], stuck + r"\n  rank 0: update at training/engine.py:\d+ update", 6),
    ]
    _day(day, small_run, uninterrupted, tmp_path, "training.silence_timeout=6", "training.standstill_timeout=8")


@pytest.mark.ranks
def test_asked_between_two_micro_steps(small_run, uninterrupted, tmp_path):
    day = [("forward and backward:USR2:10", 1, [75, 75], "step 4: ended as asked", 4)]
    _day(day, small_run, uninterrupted, tmp_path)


@pytest.mark.faults
def test_asked_at_any_time_nothing_is_lost(small_run, uninterrupted, tmp_path):
    day = [
        ("import:USR2:1", 0, [75, 75], "USR2: nothing to save yet", 0),
        ("import:INT:1", 1, [75, 75], "INT: nothing to save yet", 0),
        ("loading:TERM:1", 1, [75, 75], "TERM: nothing to save yet", 0),
        ("reading:USR2:1", 0, [75, 75], "step 0: ended as asked", 0),
        ("update:TERM:5", 0, [75, 75], "step 3: ended as asked", 3),
        ("forward and backward:TERM:4", 0, [75, 75], "step 4: ended as asked", 4),
        ("save-write:INT:1", 0, [75, 75], "step [67]: ended as asked", 6),
        ("validating:INT:2", 1, [75, 75], "step 12: ended as asked", 12),
        ("save-write:KILL:1", 0, [KILLED, 70], "step 12  validation loss", 12),  # again in the start after this one
    ]
    _day(day, small_run, uninterrupted, tmp_path)


@pytest.mark.faults
def test_signals_to_all_processes_of_a_rank_leave_its_loader_s_workers(small_run, uninterrupted, tmp_path):
    day = [
        ("update:group-USR2:5", 1, [75, 75], "step 3: ended as asked", 3),
        ("update:group-TERM:5", 0, [75, 75], "step 6: ended as asked", 6),
    ]
    _day(day, small_run, uninterrupted, tmp_path, "data.workers=1")


@pytest.mark.faults
def test_a_second_signal_ends_a_slow_save(small_run, uninterrupted, tmp_path):
    day = [("update:USR2:5,save-write:again:2", 0, [75, 70], "TERM again: ending at once", 2)]
    _day(day, small_run, uninterrupted, tmp_path)
