"""Signals ask for a save and an end; exit codes tell the batch script whether to start again."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from dsmemvp.distributed.stopping import (
    SAME_REQUEST,
    SIGNALS,
    Stopped,
    exit_code,
    ignore_signals,
    listening,
    unsignalled,
)
from dsmemvp.errors import UserError


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_and_its_echo_within_seconds_changes_nothing(number, capfd):
    before = [signal.getsignal(each) for each in SIGNALS]
    with listening() as stop:
        stop.plan = "saving first"
        assert not stop.asked
        os.kill(os.getpid(), number)
        assert stop.asked and not stop.at_once
        for each in SIGNALS:
            os.kill(os.getpid(), each)
    assert [signal.getsignal(each) for each in SIGNALS] == before
    (line,) = capfd.readouterr().err.splitlines()
    said = f"{signal.Signals(number).name[3:]}: saving first; a second signal ends at once"
    assert f"{socket.gethostname()} process {os.getpid()}: {said}" in line


def test_before_there_is_anything_to_save_a_signal_says_so(capfd):
    with listening() as stop:
        assert not stop.at_once
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked and stop.at_once
    assert "TERM: nothing to save yet, ending all ranks; a second signal ends at once" in capfd.readouterr().err


EARLY = """
import os, signal
from dsmemvp.distributed import stopping
stopping.take_charge()
for number in (signal.SIGQUIT, signal.SIGTERM):
    os.kill(os.getpid(), number)
print("imports go on", flush=True)
if LISTENS:
    with stopping.listening() as stop:
        os._exit(10 + stop.asked)
stopping.release_signals()
print("not reached")
"""


@pytest.mark.parametrize(("listens", "code"), [(True, 11), (False, -signal.SIGTERM)])
def test_the_first_moments_of_a_command_lose_no_signal_and_quit_prints_stacks(listens, code):
    program = EARLY.replace("LISTENS", str(listens))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == code and done.stdout == "imports go on\n"
    assert "most recent call first" in done.stderr


SECOND = f"""
import os, signal, sys, time
from dsmemvp.distributed import stopping
with stopping.listening() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    stop.since -= {SAME_REQUEST} + 1
    os.kill(os.getpid(), signal.SIGUSR2)
    print("not reached")
"""


def test_a_later_one_ends_at_once():
    done = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True)
    assert done.returncode == 75 and not done.stdout
    assert "USR2 again: ending at once" in done.stderr


def test_a_full_log_is_no_reason_to_miss_a_signal():
    program = (
        "import os, signal\n"
        "from dsmemvp.distributed.stopping import listening\n"
        "with listening() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os._exit(10 + stop.asked)\n"
    )
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-c", program], stderr=full).returncode == 11


def test_helpers_leave_signals_to_their_process():
    before = {each: signal.getsignal(each) for each in (*SIGNALS, signal.SIGQUIT)}
    try:
        ignore_signals()
        for each in before:
            os.kill(os.getpid(), each)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Stopped(), 75),
        (UserError("x"), 1),
        (ValueError("x"), 70),
        (FileNotFoundError(errno.ENOENT, "x"), 1),
        (PermissionError(errno.EACCES, "x"), 1),
        (OSError("x"), 1),
        (OSError(errno.ENOSPC, "x"), 70),
        (OSError(errno.EDQUOT, "x"), 70),
        (OSError(errno.EIO, "x"), 70),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), 70),
        (TimeoutError("timed out"), 70),
        (ConnectionError("the connection ended early"), 70),
        (RuntimeError("x"), 70),
        (KeyError("x"), 70),
    ],
)
def test_another_try_is_worth_it_where_the_user_need_not_change_anything(error, code):
    assert exit_code(error) == code


def test_what_is_started_unsignalled_lives_on_and_its_starter_hears_the_signal():
    with listening() as stop:
        with unsignalled():
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # other threads may take what the process gets
            assert not stop.asked
            helper = subprocess.Popen(["sleep", "60"])
        assert stop.asked
    try:
        for each in (*SIGNALS, signal.SIGQUIT):
            helper.send_signal(each)
        with pytest.raises(subprocess.TimeoutExpired):
            helper.wait(timeout=0.3)
    finally:
        helper.kill()
        helper.wait()
