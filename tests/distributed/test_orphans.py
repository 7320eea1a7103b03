"""A process whose launcher was killed saves and ends; one that a shell has started is left alone."""

import os
import subprocess
import sys
import time

import psutil

LAUNCHER = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1]]).wait()
"""
RANK = """
import time
from dsmemvp.distributed.orphans import POLL, ended_with_launcher
from dsmemvp.distributed.stopping import Stop
stop = Stop()
with ended_with_launcher(stop, grace=0.5):
    print("ready", flush=True)
    until = time.monotonic() + 4 * POLL
    while time.monotonic() < until and not stop.asked:
        time.sleep(0.01)
    print("asked" if stop.asked else "left alone", flush=True)
    time.sleep(60 * HANGS)
"""


def _orphaned(tmp_path, launcher: str, hangs: bool) -> list[str]:
    """What a process says whose parent, a program of this name, is killed."""
    (tmp_path / launcher).write_text(LAUNCHER)
    command = [sys.executable, str(tmp_path / launcher), RANK.replace("HANGS", str(int(hangs)))]
    with (tmp_path / "log").open("w") as log:
        parent = subprocess.Popen(command, stdout=log, stderr=log)
    until = time.monotonic() + 30
    while "ready" not in (tmp_path / "log").read_text():
        assert time.monotonic() < until and parent.poll() is None
        time.sleep(0.02)
    (rank,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    try:
        rank.wait(timeout=30)
    finally:
        if rank.is_running():
            rank.kill()
    return (tmp_path / "log").read_text().splitlines()


def test_it_is_asked_to_save_and_end_once_its_launcher_is_gone(tmp_path):
    ready, gone, asked = _orphaned(tmp_path, "torchrun", hangs=False)
    assert (ready, asked) == ("ready", "asked")
    assert "torchrun (process " in gone and "which started this process, has gone" in gone


def test_it_ends_when_it_does_not_do_so_in_time(tmp_path):
    assert _orphaned(tmp_path, "torchrun", hangs=True)[-1].endswith("not ended in time: ending at once")


def test_a_shell_or_script_may_end_before_what_it_has_started(tmp_path):
    assert _orphaned(tmp_path, "my-script", hangs=False) == ["ready", "left alone"]


def test_lines_for_a_launcher_that_is_gone_are_no_errors(tmp_path):
    """It has read what its ranks say, through a pipe."""
    (tmp_path / "torchrun").write_text(LAUNCHER)
    rank = RANK.replace("HANGS", "0") + f"\nopen({str(tmp_path / 'ended')!r}, 'w').write('whole')\n"
    parent = subprocess.Popen([sys.executable, str(tmp_path / "torchrun"), rank], stdout=subprocess.PIPE)
    assert parent.stdout and parent.stdout.readline() == b"ready\n"
    (child,) = psutil.Process(parent.pid).children()
    os.kill(parent.pid, 9)
    parent.stdout.close()
    parent.wait()
    child.wait(timeout=30)
    assert (tmp_path / "ended").read_text() == "whole"
