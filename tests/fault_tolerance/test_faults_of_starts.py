"""A run is started while it is being trained, its launcher is killed, it is taken over: on two ranks."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from faulty import ENVIRONMENT, Ranks, numbers, run, steps
from launch import mpirun

LEASE = "lease.json"
LONG = ["training.epochs=2000", "training.checkpoint_steps=100000", "training.checkpoint_epochs=1000"]


def _content(folder):
    """All files but the lease, which its holder changes."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LEASE)
    return {path.relative_to(folder): path.read_bytes() for path in files}


@pytest.mark.faults
def test_a_second_start_is_refused_and_harms_nothing_and_after_a_kill_of_all_the_next_goes_on(
    small_run, uninterrupted, tmp_path
):
    arguments, folder = ["train", *small_run, f"output={tmp_path}"], tmp_path / "demo"
    with Ranks(arguments, tmp_path / "first", fault="reading:hang:9", on=1) as first:
        first.until_said(1, "fault: hang")
        first.until_said(0, "step 8: saved")
        while list(folder.glob("checkpoints/old-*")):  # an old one is being deleted
            time.sleep(0.02)
        before = _content(folder)
        second = run(arguments, tmp_path / "second")
        assert second.codes == [1, 1], second.text
        who = f"{folder} is being trained by process {first.processes[0].pid} on {socket.gethostname()}, since "
        (line,) = second.said[0].splitlines()
        assert who in line
        assert _content(folder) == before and (folder / LEASE).is_file()
        assert all(process.poll() is None for process in first.processes)
    third = run(arguments, tmp_path / "third")
    assert third.codes == [0, 0] and "resuming after step 8" in third.said[0], third.text
    assert "waiting" not in third.said[0]
    assert numbers(folder) == numbers(uninterrupted)
    assert not (folder / LEASE).exists()


@pytest.mark.faults
def test_a_holder_that_was_taken_over_ends_before_it_writes(small_run, tmp_path):
    arguments, folder = ["train", *small_run, f"output={tmp_path}", "training.silence_timeout=60"], tmp_path / "demo"
    with Ranks(arguments, tmp_path / "logs", fault="reading:STOP:6", on=0) as first:
        first.until_said(0, "fault: STOP")
        before, other = _content(folder), json.loads((folder / LEASE).read_text())
        other |= {"token": "another", "host": "node7"}
        (tmp_path / LEASE).write_text(json.dumps(other))
        (tmp_path / LEASE).replace(folder / LEASE)
        os.kill(first.processes[0].pid, signal.SIGCONT)
        ended = first.ended()
    assert ended.codes == [1, 70], ended.text
    assert f"dsmemvp: error: {folder} was taken over by process {other['process']} on node7" in ended.said[0]
    assert steps(folder) == sorted(int(path.parent.name[5:]) for path in before if path.name == "state.json")
    assert json.loads((folder / LEASE).read_text()) == other


@contextmanager
def _launched(command, log):
    """A launch by a real launcher in a session of its own, of which nothing is left afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RANK", "WORLD", "LOCAL"))}
    environment |= ENVIRONMENT | {"MASTER_PORT": port, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with log.open("w") as file:
        launcher = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    known = []
    try:
        yield launcher, known
    finally:
        for process in (*known, *psutil.Process().children(recursive=True)):
            if process.is_running() and os.getsid(process.pid) == launcher.pid:
                process.kill()
        launcher.wait()


def _until(condition, seconds, log):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)


def _working(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.faults
@pytest.mark.parametrize("killed", ["deepspeed", "deepspeed.launcher.launch", "mpirun"])
def test_ranks_whose_launcher_was_killed_save_and_end(small_run, tmp_path, killed):
    log, folder = tmp_path / "log", tmp_path / "demo"
    train = ["train", *small_run, f"output={tmp_path}", *LONG]
    if killed == "mpirun":
        command = [mpirun(), "--allow-run-as-root", "--oversubscribe", "-n", "2"]
        command += [sys.executable, "-m", "dsmemvp", *train]
    else:
        deepspeed = str(Path(sys.executable).with_name("deepspeed"))
        command = [deepspeed, "--num_gpus", "2", "--master_port", str(29_777), "--module", "dsmemvp", *train]
    with _launched(command, log) as (launcher, known):
        _until(lambda: "step 3 " in log.read_text(), 120, log)
        known += psutil.Process(launcher.pid).children(recursive=True)
        ranks = [process for process in known if "dsmemvp" in process.cmdline()]
        ranks = [process for process in ranks if "deepspeed.launcher.launch" not in process.cmdline()]
        assert len(ranks) == 2
        victim = next((process for process in known if killed in process.cmdline()), psutil.Process(launcher.pid))
        os.kill(victim.pid, signal.SIGKILL)
        _until(lambda: not any(map(_working, ranks)), 60, log)
        assert not (folder / LEASE).exists()
    (saved,) = steps(folder)
    done = run([*train, f"training.stop_at_step={saved + 1}"], tmp_path / "logs")
    assert done.codes == [0, 0] and f"resuming after step {saved}" in done.said[0], done.text
    if killed != "mpirun":  # what it was to pass on is lost with it
        assert f"{killed} (process {victim.pid}), which started this process, has gone" in log.read_text()
