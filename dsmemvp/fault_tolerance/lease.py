"""The lease on a run's folder: of all trainings of a run, one writes there.

RUN/lease.json names the process that holds it, which changes a number in it every BEAT seconds. A start that finds
the file looks whether that process is alive: at once if it can see the process, otherwise by whether the file changes
within EXPIRY seconds of looking. Clocks of two nodes are never compared. A holder that was suspended or
cut off from the file system for too long finds another's name in the file, and ends before it writes anything else.

Only exclusive creation and renaming are asked of the file system: locks are not kept on every one that nodes share.
"""

import json
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from dsmemvp.distributed.ranks import Ranks
from dsmemvp.distributed.stopping import USER_ERROR, Stop, Stopped, leave_word
from dsmemvp.errors import UserError
from dsmemvp.fault_tolerance.heartbeat import Heartbeat
from dsmemvp.fault_tolerance.holder import Holder, is_alive, own_holder, read_holder
from dsmemvp.log import log

FILE = "lease.json"
SIZE = 1024
"""Bytes of it: always the same, so that a change in place leaves nothing of what was there."""
BEAT = 2.0
"""Seconds between two changes."""
POLL = 1.0
"""Seconds between two attempts to get it."""
EXPIRY = 60
"""Attempts without a change after which a holder that cannot be seen is taken for dead. Attempts and not seconds: a
file system that hangs for both holds up the count as well."""
PATIENCE = 300
"""Attempts to wait for a holder that is alive and is about to end."""


def end_process(why: str) -> None:
    """How a process ends that has lost its lease. Never returns."""
    with suppress(OSError):
        sys.stderr.write(f"dsmemvp: error: {why}\n")
        sys.stderr.flush()
    leave_word(why)
    os._exit(USER_ERROR)


class Lease:
    """The first rank's. `lost` is called with the reason by `beat` and `check` if another holds the lease."""

    def __init__(self, run: Path, own: Holder, lost: Callable[[str], object] = end_process):
        self._run, self._path, self._own, self._lost = run, run / FILE, own, lost
        self._beats = 0
        self._seen: bytes | None = None
        """What another's file held at the last attempt."""
        self._unchanged = self._attempts = 0
        self._moved = self._told = False

    def attempt(self) -> bool:
        """Try to get it, once; whether this process has it now. If another may live, or has been given up, the next
        attempt tells: call again POLL seconds later. Raises UserError naming a holder that is alive, and OSError."""
        self._run.mkdir(parents=True, exist_ok=True)
        self._own = replace(self._own, folder=self._run.stat().st_ino)
        if self._create():
            return True
        try:
            content = self._read()
        except FileNotFoundError:  # let go of just now
            return False
        found = read_holder(content)
        if found and found.token == self._own.token:  # put there at the attempt before, and nobody else's since
            return True
        alive = self._alive(found, content)
        if alive is False:
            self._replace()
        else:
            self._wait(found, alive)
        return False

    def _read(self) -> bytes:
        descriptor = self._open(os.O_RDONLY)
        try:
            return os.read(descriptor, SIZE)
        finally:
            os.close(descriptor)

    def _open(self, how: int) -> int:
        """Its descriptor. Raises UserError if something else stands in its place: a pipe would be waited for."""
        descriptor = os.open(self._path, how | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UserError(f"{self._path} is not a regular file; remove it")
        return descriptor

    def _alive(self, found: Holder | None, content: bytes) -> bool | None:
        """None while it is not known."""
        if found and found.processes == self._own.processes:
            return found.folder == self._own.folder and is_alive(found)
        self._moved = self._moved or self._seen not in (None, content)
        self._unchanged = self._unchanged + 1 if self._seen == content else 0
        self._seen = content
        return False if self._unchanged >= EXPIRY else self._moved or None

    def _wait(self, found: Holder | None, alive: bool | None) -> None:
        """Count an attempt for nothing; say once what is waited for. Raises UserError if that is in vain."""
        self._attempts += 1
        who = str(found) if found else f"somebody who left no name in {FILE}"
        if alive and not (found and self._ends_soon(found) and self._attempts < PATIENCE):
            raise UserError(
                f"{self._run} is being trained by {who}; end that first, or take another folder (name=... of a run,"
                " --out of a study)"
            )
        if not self._told:
            what = f"up to {EXPIRY * POLL:g} s, to see whether that is alive" if alive is None else "for that to end"
            log.info(f"{self._run} is held by {who}: waiting {what}")
        self._told = True

    def _ends_soon(self, found: Holder) -> bool:
        """It was asked to, or is of this very job, from before Slurm requeued it."""
        return found.ending or bool(found.job and found.job == self._own.job and found.restart < self._own.restart)

    def _content(self, ending: bool = False) -> bytes:
        self._beats += 1
        row = asdict(self._own) | {"ending": ending, "beat": self._beats}
        return json.dumps(row).encode().ljust(SIZE - 1) + b"\n"

    def _create(self) -> bool:
        """Whether there was none."""
        try:
            with self._path.open("xb", buffering=0) as file:
                try:
                    file.write(self._content())
                except OSError:  # a full disk
                    self._path.unlink()
                    raise
        except FileExistsError:
            return False
        return True

    def _replace(self) -> None:
        """By a file of its own: what the holder before writes into its open one is nobody's. Of several starts that do
        so the last one has the lease, as each finds out at its next attempt."""
        new = self._path.with_name(f"partial-{FILE}-{self._own.token}")
        try:
            new.write_bytes(self._content())
            new.replace(self._path)
        finally:
            new.unlink(missing_ok=True)

    def beat(self, ending: bool = False) -> None:
        """Show that this process is alive. What the file system does not take now, it may the next time."""
        with suppress(OSError):
            self._look(ending, write=True)

    def check(self) -> None:
        """Before anything is written that another holder's start would be harmed by. Raises OSError."""
        self._look(ending=False, write=False)

    def _look(self, ending: bool, write: bool) -> None:
        try:
            descriptor = self._open(os.O_RDWR if write else os.O_RDONLY)
        except (FileNotFoundError, ValueError):
            self._lost(f"{self._path} was taken away, so that another training may have begun: this one ends")
            return
        try:
            content = os.read(descriptor, SIZE)
            # the token alone: it stays the same while another thread of this process changes what stands behind it
            if self._own.token.encode() not in content:
                who = read_holder(content) or "somebody who left no name"
                self._lost(f"{self._run} was taken over by {who}, since this process was not heard of: it ends")
            elif write:
                os.pwrite(descriptor, self._content(ending), 0)
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Let go of it, if this process has it. A run without anything else in its folder has none."""
        with suppress(OSError, ValueError):
            found = read_holder(self._read())
            if found and found.token == self._own.token:
                self._path.unlink()
                self._run.rmdir()


@contextmanager
def held_lease(run: Path, ranks: Ranks, stop: Stop, heartbeat: Heartbeat) -> Iterator[Callable[[], object]]:
    """The lease on `run` for all ranks, from here to the end of the block. Gives what the first rank calls before it
    writes or removes a checkpoint. Raises UserError naming another start that trains the run, OSError, and Stopped."""
    lease = Lease(run, own_holder(os.environ)) if ranks.first else None
    over = threading.Event()
    keeper = threading.Thread(target=_keep, args=(lease, stop, over), name="lease", daemon=True)
    try:
        while not ranks.any(ranks.together(lambda: lease is not None and lease.attempt())):
            heartbeat.at("waiting for the run's folder", 0)
            if ranks.any(stop.asked):
                raise Stopped("before the run's folder was free")
            time.sleep(POLL)
        keeper.start()
        yield lease.check if lease else lambda: None
    finally:
        over.set()
        if keeper.ident:
            keeper.join()
        if lease:
            lease.release()


def _keep(lease: Lease | None, stop: Stop, over: threading.Event) -> None:
    while lease and not over.wait(BEAT):
        lease.beat(stop.asked)
