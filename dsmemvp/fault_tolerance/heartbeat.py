"""Detect failed ranks: one that dies, hangs or loses its network ends the run soon, with a message that names it.

A thread of every rank reports to the first rank once a second where its main thread is; a thread of the first rank
listens. It passes a verdict when a connection breaks, when nothing is heard from a rank, or when a rank's main thread
does not move on. Then every process prints the verdict with the place it was waiting in, and ends with UNEXPECTED, so
that a batch script starts the run again. A rank that hears nothing from the first one ends in the same way. A rank that
is asked to end before there is anything to save has all ranks end with REQUEUE.

Both ends of a connection prove that they know a token of this run (heartbeat_protocol.py): no other process on the
network can end it.

This is apart from the collectives, which only say that somebody is missing (gloo) or nothing at all (nccl), and late.
What they know, the collectives that each rank has called, every rank adds to the verdict (flight_recorder.py).
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType, TracebackType
from typing import ClassVar

from dsmemvp.distributed.ranks import Ranks
from dsmemvp.distributed.stopping import REQUEUE, UNEXPECTED, USER_ERROR, Stop, Stopped, exit_code, leave_word
from dsmemvp.errors import UserError
from dsmemvp.fault_tolerance import flight_recorder
from dsmemvp.fault_tolerance.failure_detector import GATHER
from dsmemvp.fault_tolerance.heartbeat_protocol import BEAT, RankStatus, connect
from dsmemvp.fault_tolerance.heartbeat_server import ANY_ADDRESS, PAUSE, HeartbeatServer, open_listeners
from dsmemvp.json_text import parse_json

COLLECTIVES = (f"{os.sep}torch{os.sep}distributed{os.sep}", f"{os.sep}deepspeed{os.sep}comm{os.sep}")
PARTITIONS = f"{os.sep}deepspeed{os.sep}runtime{os.sep}zero{os.sep}"
OWN_CODE = f"{os.sep}dsmemvp{os.sep}"


Listener = Callable[[str, int], object]
"""(phase, steps made)"""


class Heartbeat:
    """`silence` and `standstill` are the seconds after which a rank that is not heard, or does not move on, is given
    up; `folder` takes the collectives of ranks that are ended. Use as a context manager around all that ranks do
    together. Raises RuntimeError if rank 0 is not reached."""

    listeners: ClassVar[list[Listener]] = []
    """Called in the main thread whenever it begins a phase: "loading", "reading", "measuring" and "forward and
    backward" (both at each micro-step), "update", "saving", "validating" and "evaluating" (at each batch). A profiler
    or a fault test adds its function here; an exception that it raises is the run's."""

    def __init__(self, ranks: Ranks, silence: float, standstill: float, stop: Stop, folder: Path):
        self._beat, self._stop = RankStatus(ranks.rank, socket.gethostname()), stop
        self._silence, self._standstill = silence, standstill
        self._collectives = folder if ranks.world > 1 else None
        self._main = threading.get_ident()
        self._failed_in = ""
        """Where the main thread was when it met an error."""
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._line, self._server = _connected(ranks, silence, standstill)
        self._thread = threading.Thread(target=self._tell, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        """An error of this rank is sent to the others; one that follows from theirs ends this process here, with what
        the first rank says of it."""
        if error is not None and not isinstance(error, Stopped):
            code, follows = exit_code(error), _from_collective(error)
            self._failed_in = _place(frame for frame, _ in traceback.walk_tb(trace))
            text = str(error) if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {error}"
            if code == UNEXPECTED and not follows and not isinstance(error, OSError):
                traceback.print_exception(error)
            self._send(error=text.strip() or type(error).__name__, code=code, follows=follows)
            if code == UNEXPECTED:
                time.sleep(3 * GATHER)  # within which the verdict comes
        self._over.set()
        self._send(bye=True)
        self._thread.join(timeout=self._silence)
        if self._server:
            self._server.join(timeout=self._silence)  # it stays until the slowest rank is done
        self._line.close()

    def at(self, doing: str, step: int) -> None:
        """The main thread begins a phase, after `step` steps. Cheap: no system call."""
        self._beat.doing, self._beat.step = doing, step
        self._beat.moves += 1
        for listener in self.listeners:
            listener(doing, step)

    def _send(self, **news) -> None:
        for name, value in news.items():
            setattr(self._beat, name, value)
        self._beat.where, self._beat.waiting = self._where(), _waits(sys._current_frames().get(self._main))
        with self._lock, contextlib.suppress(OSError):
            self._line.sendall(self._beat.line())

    def _tell(self) -> None:
        """Speak once a second, and hear whether the first rank still does."""
        heard = before = time.monotonic()
        received = b""
        self._line.settimeout(BEAT)
        while not self._over.is_set():
            asked = {"error": "was asked to end, with nothing to save yet", "code": REQUEUE}
            self._send(**(asked if self._stop.at_once else {}))
            try:
                part = self._line.recv(1 << 16)
            except TimeoutError:
                part = None
            except OSError:
                part = b""
            now = time.monotonic()
            if now - before > PAUSE:
                heard += now - before
            before = now
            if part:
                heard, received = now, received + part
                *lines, received = received.split(b"\n")
                for line in filter(None, lines):
                    found = parse_json(line, "the verdict of rank 0")
                    self._end(found["verdict"], found["code"])
            elif part == b"" and not self._over.is_set():
                self._end("rank 0 has died, or ended without a word", UNEXPECTED)
            elif now - heard > self._silence:
                self._end(f"rank 0 has given no sign of life for {now - heard:.0f} s", UNEXPECTED)

    def _end(self, verdict: str, code: int) -> None:
        if self._over.is_set():
            return
        beat = self._beat
        own = f"rank {beat.rank} on {beat.host}, after step {beat.step}, {beat.doing}: {self._where()}"
        with contextlib.suppress(OSError):  # of a log on a full disk: this process must end all the same
            if code != USER_ERROR or beat.rank == 0:  # of a user's error one line is enough
                sys.stderr.write(f"dsmemvp: {verdict}\n" + ("" if code == USER_ERROR else f"  ending {own}\n"))
            sys.stderr.flush()
            if code == UNEXPECTED and self._collectives is not None:
                said = flight_recorder.dump(self._collectives, beat.rank)
                sys.stderr.write(f"  collectives of rank {beat.rank}: {said}\n")
                sys.stderr.flush()
            sys.stdout.flush()
        if code == USER_ERROR:  # if srun ends the rank that met it before it can
            leave_word(verdict.removeprefix("error: "))
        os._exit(code)

    def _where(self) -> str:
        frame = sys._current_frames().get(self._main)
        return self._failed_in or _place(reversed(list(_outwards(frame))))


def _connected(ranks: Ranks, silence: float, standstill: float) -> tuple[socket.socket, threading.Thread | None]:
    """This rank's connection to rank 0; on rank 0 also the thread that listens."""
    addresses = ranks.gather([ranks.first_address])
    listeners = ranks.together(lambda: open_listeners(addresses) if ranks.first else {})
    ports = {address: listener.getsockname()[1] for address, listener in listeners.items()}
    own = [json.dumps([secrets.token_hex(32), ports])] if ranks.first else []
    token, ports = json.loads(ranks.gather(own)[0])
    thread = None
    if ranks.first:
        server = HeartbeatServer(listeners.values(), ranks.world, token.encode(), silence, standstill)
        thread = threading.Thread(target=server.listen, name="heartbeat-server", daemon=True)
        thread.start()
    address = ranks.first_address
    port = ports[address if address in ports else ANY_ADDRESS]
    return connect(address, port, ranks.rank, token.encode(), silence), thread


def _from_collective(error: BaseException) -> bool:
    """DeepSpeed also waits for gloo outside of its own collectives; the text then says whose error it is."""
    stack = traceback.extract_tb(error.__traceback__)
    inside = bool(stack) and any(part in stack[-1].filename for part in COLLECTIVES)
    return inside or (isinstance(error, RuntimeError) and f"{os.sep}gloo{os.sep}" in str(error))


def _waits(frame: FrameType | None) -> bool:
    """Whether a thread most likely waits for other ranks; DeepSpeed does so wherever it deals with partitions."""
    name = frame.f_code.co_filename if frame else ""
    return any(part in name for part in (*COLLECTIVES, PARTITIONS))


def _outwards(frame: FrameType | None) -> Iterable[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place(frames: Iterable[FrameType]) -> str:
    """The innermost line of this package's code in a stack, outermost frame first, and what that has called last. Looks
    at no source file: a file system that hangs must not silence a rank."""
    own = last = None
    for last in frames:
        if OWN_CODE in last.f_code.co_filename and not last.f_code.co_name.startswith("<"):  # a function has a name
            own = last
    if own is None or last is None:
        return ""
    inside = "" if own is last else f" in {last.f_code.co_name}"
    return f"{own.f_code.co_filename.rpartition(OWN_CODE)[2]}:{own.f_lineno} {own.f_code.co_name}{inside}"
