"""One training of a run at a time, whoever starts it and however the one before has ended."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from dsmemvp.errors import UserError
from dsmemvp.fault_tolerance.holder import own_holder
from dsmemvp.fault_tolerance.lease import EXPIRY, FILE, PATIENCE, Lease


class Lost(Exception):
    pass


def _lost(why):
    raise Lost(why)


def _start(run, environment=None, **other) -> Lease:
    """Of this process, or of one on another host if `other` says so."""
    return Lease(run, replace(own_holder(environment or {}), **other), _lost)


def _elsewhere(run, name, **other) -> Lease:
    return _start(run, host=name, processes=f"those of {name}", **other)


def _content(run):
    return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}


HOLD = """
import os, sys
from pathlib import Path
from dsmemvp.fault_tolerance.holder import own_holder
from dsmemvp.fault_tolerance.lease import Lease
assert Lease(Path(sys.argv[1]), own_holder({})).attempt()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def process(tmp_path):
    """Holds the lease on tmp_path / "run"."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout and held.stdout.readline() == "held\n"
        yield held
        held.kill()


def test_a_run_that_nobody_trains_is_free_at_once_and_again_after_its_release(tmp_path):
    first = _start(tmp_path / "run")
    assert first.attempt()
    first.check()
    first.beat()
    first.release()
    assert not (tmp_path / "run").exists()  # nothing else was in it
    assert _elsewhere(tmp_path / "run", "node2").attempt()


def test_a_second_start_on_the_host_is_told_who_trains_and_changes_nothing(tmp_path, process):
    before = _content(tmp_path)
    with pytest.raises(UserError, match=rf"run is being trained by process {process.pid} on \S+, since ") as refused:
        _start(tmp_path / "run").attempt()
    assert "\n" not in str(refused.value)
    assert _content(tmp_path) == before


def test_a_copy_of_a_folder_that_is_trained_is_free(tmp_path, process):
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    start = _start(tmp_path / "copy")
    assert not start.attempt() and start.attempt()
    with pytest.raises(UserError, match="run is being trained by process"):
        _start(tmp_path / "run").attempt()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_something_else_in_the_place_of_the_file_is_named_and_not_waited_for(tmp_path, make):
    make(tmp_path / FILE)
    with pytest.raises(UserError, match=r"lease\.json is not a regular file; remove it"):
        _start(tmp_path).attempt()


def test_after_a_kill_the_next_start_on_the_host_goes_on_at_once(tmp_path, process):
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and its parent has not waited for it
    second = _start(tmp_path / "run")
    assert [second.attempt(), second.attempt()] == [False, True]


def test_a_later_process_of_the_same_number_is_another_one(tmp_path):
    assert _start(tmp_path, started=1).attempt()
    second = _start(tmp_path)
    assert [second.attempt(), second.attempt()] == [False, True]


def test_a_holder_on_another_host_is_alive_if_its_file_changes(tmp_path, capsys):
    first, second = _elsewhere(tmp_path, "node1", job="17"), _elsewhere(tmp_path, "node2")
    assert first.attempt()
    for _ in range(3):
        assert not second.attempt()
    (line,) = capsys.readouterr().out.splitlines()
    assert f"is held by process {os.getpid()} on node1 of job 17" in line and "waiting up to 60 s" in line
    first.beat()
    with pytest.raises(UserError, match=r"is being trained by process .* on node1 of job 17, since"):
        second.attempt()
    first.check()


def test_a_holder_on_another_host_that_is_silent_is_given_up_and_ends_when_it_comes_back(tmp_path):
    first, second = _elsewhere(tmp_path, "node1"), _elsewhere(tmp_path, "node2")
    assert first.attempt()
    got = [second.attempt() for _ in range(EXPIRY + 2)]
    assert not any(got[:-1]) and got[-1]
    before = _content(tmp_path)
    for act in (first.beat, first.check):
        with pytest.raises(Lost, match=r"was taken over by process .* on node2"):
            act()
    first.release()
    assert _content(tmp_path) == before
    second.check()


def test_of_two_starts_that_give_up_the_same_holder_one_goes_on(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    assert _elsewhere(run, "node1").attempt() and _elsewhere(other, "node3").attempt()
    second = _elsewhere(run, "node2")
    assert not any(second.attempt() for _ in range(EXPIRY + 1))
    (other / FILE).replace(run / FILE)  # the third has found out at the same moment, and comes last
    with pytest.raises(UserError, match="on node3"):
        second.attempt()


def test_a_lease_that_was_taken_away_ends_its_holder(tmp_path):
    first = _start(tmp_path)
    assert first.attempt()
    (tmp_path / FILE).unlink()
    for act in (first.beat, first.check):
        with pytest.raises(Lost, match="was taken away"):
            act()


def test_a_requeued_job_waits_for_its_own_ranks_to_end_and_another_job_does_not(tmp_path, process):
    (tmp_path / "run" / FILE).unlink()
    old = _start(tmp_path / "run", {"SLURM_JOB_ID": "17"})
    assert old.attempt()
    with pytest.raises(UserError, match="of job 17"):
        _start(tmp_path / "run", {"SLURM_JOB_ID": "18", "SLURM_RESTART_COUNT": "1"}).attempt()
    with pytest.raises(UserError, match="of job 17"):  # a second srun in an allocation
        _start(tmp_path / "run", {"SLURM_JOB_ID": "17"}).attempt()
    requeued = [_start(tmp_path / "run", {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"}) for _ in range(2)]
    assert not any(requeued[0].attempt() for _ in range(100))
    with pytest.raises(UserError, match="of job 17"):
        for _ in range(PATIENCE):
            requeued[1].attempt()
    old.release()
    assert requeued[0].attempt()


@pytest.mark.parametrize("host", ["", "node1"])
def test_a_holder_that_was_asked_to_end_is_waited_for(tmp_path, host):
    first = _elsewhere(tmp_path, host) if host else _start(tmp_path)
    second = _start(tmp_path)
    assert first.attempt()
    for _ in range(100):
        first.beat(ending=True)
        assert not second.attempt()
    first.release()
    assert second.attempt()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[" * 100_000, b'{"beat": 1}', b'{"token": "x"' + b" " * 2000, b"\xff" * 9],
    ids=["empty", "half", "null", "deep", "another", "long", "bytes"],
)
def test_what_somebody_else_has_written_there_is_waited_for_and_given_up(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    start = _start(tmp_path)
    assert not any(start.attempt() for _ in range(EXPIRY + 1))
    assert start.attempt()
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(Lost, match="somebody who left no name"):
        start.beat()
