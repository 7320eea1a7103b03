"""Watching over ranks: one that dies, hangs or loses its network ends the run soon, with a message that names it.

A thread of every rank tells the first rank once a second where its main thread is; a thread of the first rank listens.
It passes a verdict when a connection breaks, when nothing is heard from a rank, or when a rank's main thread does not
move on. Then every process prints the verdict with the place it was waiting in, and ends with UNEXPECTED, so that a
batch script starts the run again. A rank that hears nothing from the first one ends in the same way.

This is apart from the collectives, which only say that somebody is missing (gloo) or nothing at all (nccl), and late.
"""

import contextlib
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict
from types import FrameType, TracebackType

from dsmemvp.stopping import UNEXPECTED, USER_ERROR, Stopped, exit_code, leave_word
from dsmemvp.training.hub import BEAT, GATHER, PAUSE, Hub, Word
from dsmemvp.training.ranks import Ranks

COLLECTIVES = (f"{os.sep}torch{os.sep}distributed{os.sep}", f"{os.sep}deepspeed{os.sep}comm{os.sep}")
PARTITIONS = f"{os.sep}deepspeed{os.sep}runtime{os.sep}zero{os.sep}"
OWN_CODE = f"{os.sep}dsmemvp{os.sep}"


class Watch:
    """`silence` and `standstill` are the seconds after which a rank that is not heard, or does not move on, is given
    up. Use as a context manager around all that ranks do together."""

    def __init__(self, ranks: Ranks, silence: float, standstill: float):
        self._word = Word(ranks.rank, socket.gethostname())
        self._silence, self._standstill = silence, standstill
        self._main = threading.get_ident()
        self._failed_in = ""
        """Where the main thread was when it met an error."""
        self._lock = threading.Lock()
        self._over = threading.Event()
        listener = socket.create_server(("", 0), backlog=4096) if ranks.first else None
        port = int(ranks.sums(listener.getsockname()[1] if listener else 0)[0])
        self._hub = Hub(listener, ranks.world, silence, standstill) if listener else None
        host = "127.0.0.1" if ranks.first else os.environ["MASTER_ADDR"]
        try:
            self._line = socket.create_connection((host, port), timeout=silence)
        except OSError as error:  # not the user's doing: it was there a moment ago
            raise RuntimeError(f"rank {ranks.rank} cannot reach rank 0 at {host}:{port}: {error}") from None
        self._threads = [threading.Thread(target=self._tell, name="watch", daemon=True)]
        if self._hub:
            self._threads.append(threading.Thread(target=self._hub.listen, name="watch-hub", daemon=True))
        # stack traces of all threads on demand: `scancel --signal=QUIT JOB`, or `kill -QUIT PID` for one rank
        faulthandler.register(signal.SIGQUIT, file=2, all_threads=True)

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        """An error of this rank is told to the others; one that follows from theirs ends this process here, with what
        the first rank says of it."""
        if error is not None and not isinstance(error, Stopped):
            code, follows = exit_code(error), _from_collective(error)
            self._failed_in = _place(frame for frame, _ in traceback.walk_tb(trace))
            text = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
            if code == UNEXPECTED and not follows and not isinstance(error, OSError):
                traceback.print_exception(error)
            self._send(error=text.strip() or type(error).__name__, code=code, follows=follows)
            if code == UNEXPECTED:
                time.sleep(3 * GATHER)  # within which the verdict comes
        self._over.set()
        self._send(bye=True)
        for thread in self._threads:
            thread.join(timeout=self._silence)  # the hub stays until the slowest rank is done
        self._line.close()

    def at(self, doing: str, step: int) -> None:
        """The main thread gets on to something else, after `step` steps. Cheap: no system call."""
        self._word.doing, self._word.step = doing, step
        self._word.moves += 1

    def _send(self, **news) -> None:
        for name, value in news.items():
            setattr(self._word, name, value)
        self._word.where, self._word.waiting = self._where(), _waits(sys._current_frames().get(self._main))
        with self._lock, contextlib.suppress(OSError):
            self._line.sendall(json.dumps(asdict(self._word)).encode() + b"\n")

    def _tell(self) -> None:
        """Speak once a second, and hear whether the first rank still does."""
        heard = before = time.monotonic()
        received = b""
        self._line.settimeout(BEAT)
        while not self._over.is_set():
            self._send()
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
                for verdict in filter(None, lines):
                    self._end(**json.loads(verdict))
            elif part == b"" and not self._over.is_set():
                self._end("rank 0 has died, or ended without a word", UNEXPECTED)
            elif now - heard > self._silence:
                self._end(f"rank 0 has given no sign of life for {now - heard:.0f} s", UNEXPECTED)

    def _end(self, verdict: str, code: int) -> None:
        if self._over.is_set():
            return
        word = self._word
        own = f"rank {word.rank} on {word.host}, after step {word.step}, {word.doing}: {self._where()}"
        with contextlib.suppress(OSError):  # of a log on a full disk: this process must end all the same
            if code != USER_ERROR or word.rank == 0:  # of a user's error one line is enough
                sys.stderr.write(f"dsmemvp: {verdict}\n" + ("" if code == USER_ERROR else f"  ending {own}\n"))
            sys.stderr.flush()
            sys.stdout.flush()
        if code == USER_ERROR:  # where srun ends the rank that met it before it can
            leave_word(verdict.removeprefix("error: "))
        os._exit(code)

    def _where(self) -> str:
        frame = sys._current_frames().get(self._main)
        return self._failed_in or _place(reversed(list(_outwards(frame))))


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
