"""How a process is asked to save and end, and what its exit code says to whoever started it.

USR2 (Slurm's --signal), TERM and INT (Ctrl-C) ask for a save and an end. QUIT prints the stacks of all threads and
changes nothing else: `scancel --signal=QUIT JOB`, or `kill -QUIT PID` for one rank. A batch script starts the run again
after REQUEUE and after whatever else is not the user's doing; see docs/cluster.md.
"""

import contextlib
import errno
import faulthandler
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dsmemvp.errors import UserError

DONE = 0
USER_ERROR = 1
"""The same again would fail again."""
UNEXPECTED = 70
"""A lost rank, a full disk, an error nobody foresaw (sysexits' EX_SOFTWARE): worth another try."""
REQUEUE = 75
"""Saved and ended because it was asked to (sysexits' EX_TEMPFAIL)."""

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
SAME_REQUEST = 3.0
"""Seconds in which further signals belong to the first: launchers pass on what a terminal has sent to all as well."""
PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EROFS}
PASSING |= {errno.EREMOTEIO, errno.EPIPE, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ESHUTDOWN}
PASSING |= {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
"""Errors of disks, networks and machines that pass without the user's changing the recipe."""


class Stopped(Exception):
    """The run has saved what it had and ends as it was asked to."""


@dataclass
class Stop:
    """Whether this process was asked to save and end. Others may have been asked: ranks agree before they act."""

    asked: bool = False
    since: float = 0.0
    plan: str = ""
    """What the command does when it is asked to end, as the user reads it. Empty before there is anything to save: then
    the ranks end as soon as all know of it (rendezvous.py, heartbeat.py), whatever their main threads are doing."""

    @property
    def at_once(self) -> bool:
        """Whether this process was asked to end and has nothing to save first."""
        return self.asked and not self.plan

    def _receive(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.asked and now - self.since > SAME_REQUEST:
            _say(f"{_name(number)} again: ending at once")
            os._exit(REQUEUE)
        if not self.asked:
            self.asked, self.since = True, now
            plan = self.plan or "nothing to save yet, ending all ranks"
            _say(f"{_name(number)}: {plan}; a second signal ends at once")


def take_charge() -> None:
    """The first act of a process that runs a command, before anything is imported that takes time: QUIT prints stacks,
    and SIGNALS are held until the command says with `listening` or `release_signals` what they do to it."""
    faulthandler.register(signal.SIGQUIT, file=2, all_threads=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def release_signals() -> None:
    """Signals do what they do to any program. Those held since `take_charge` come now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def listening() -> Iterator[Stop]:
    """Take the signals of SIGNALS as requests, those held since `take_charge` included, until the command ends."""
    stop = Stop()
    before = {number: signal.signal(number, stop._receive) for number in SIGNALS}
    release_signals()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


TO_ALL = (*SIGNALS, signal.SIGQUIT)
"""Slurm signals all processes of a task, for stack traces (QUIT) as well; helpers of a rank leave them to it."""


@contextmanager
def unsignalled() -> Iterator[None]:
    """Processes that are started in it inherit that signals are held back, and never receive them; those that come to
    this one meanwhile it receives afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TO_ALL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """For workers that read data: the process they belong to ends them."""
    for number in TO_ALL:
        signal.signal(number, signal.SIG_IGN)


def exit_code(error: BaseException) -> int:
    """What a command that ends with this error says to whoever started it."""
    if isinstance(error, Stopped):
        return REQUEUE
    if isinstance(error, TimeoutError | ConnectionError) or (isinstance(error, OSError) and error.errno in PASSING):
        return UNEXPECTED
    return USER_ERROR if isinstance(error, UserError | OSError) else UNEXPECTED


def leave_word(error: str) -> None:
    """An error of the user's, for slurm/train.sbatch: srun alone would not tell it the exit code."""
    path = os.environ.get("DSMEMVP_ERROR_FILE")
    if path:
        with contextlib.suppress(OSError):
            Path(path).write_text(f"{error}\n", encoding="utf-8")


def _name(number: int) -> str:
    return signal.Signals(number).name.removeprefix("SIG")


def _say(text: str) -> None:
    # past sys.stderr, which the signal may have interrupted while it was writing: a second call into it would raise
    with contextlib.suppress(OSError):
        os.write(2, f"{socket.gethostname()} process {os.getpid()}: {text}\n".encode())
