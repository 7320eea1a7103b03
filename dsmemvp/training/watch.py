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
from dataclasses import asdict

from dsmemvp.stopping import UNEXPECTED, USER_ERROR, Stopped, exit_code
from dsmemvp.training.hub import BEAT, GATHER, PAUSE, Hub, Word
from dsmemvp.training.ranks import Ranks

COLLECTIVES = (f"{os.sep}torch{os.sep}distributed{os.sep}", f"{os.sep}deepspeed{os.sep}comm{os.sep}")
OWN_CODE = f"{os.sep}dsmemvp{os.sep}"


class Watch:
    """`silence` and `standstill` are the seconds after which a rank that is not heard, or does not move on, is given
    up. Use as a context manager around all that ranks do together."""

    def __init__(self, ranks: Ranks, silence: float, standstill: float):
        self._word = Word(ranks.rank, socket.gethostname())
        self._silence, self._standstill = silence, standstill
        self._main = threading.get_ident()
        self._lock = threading.Lock()
        self._over = threading.Event()
        listener = socket.create_server(("", 0), backlog=4096) if ranks.first else None
        port = int(ranks.sums(listener.getsockname()[1] if listener else 0)[0])
        self._hub = Hub(listener, ranks.world, silence, standstill) if listener else None
        host = "127.0.0.1" if ranks.first else os.environ["MASTER_ADDR"]
        self._line = socket.create_connection((host, port), timeout=silence)
        self._threads = [threading.Thread(target=self._tell, name="watch", daemon=True)]
        if self._hub:
            self._threads.append(threading.Thread(target=self._hub.listen, name="watch-hub", daemon=True))
        # stack traces of all threads on demand: `scancel --signal=QUIT JOB`, or `kill -QUIT PID` for one rank
        faulthandler.register(signal.SIGQUIT, file=2, all_threads=True)

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """An error of this rank is told to the others; one that follows from theirs ends this process here, with what
        the first rank says of it."""
        if error is not None and not isinstance(error, Stopped):
            code, follows = exit_code(error), _from_collective(error)
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
        self._word.where = _where(self._main)
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
        own = f"rank {word.rank} on {word.host}, after step {word.step}, {word.doing}: {_where(self._main)}"
        if code != USER_ERROR or word.rank == 0:  # of a user's error one line is enough
            sys.stderr.write(f"dsmemvp: {verdict}\n" + ("" if code == USER_ERROR else f"  ending {own}\n"))
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)


def _from_collective(error: BaseException) -> bool:
    stack = traceback.extract_tb(error.__traceback__)
    return bool(stack) and any(part in stack[-1].filename for part in COLLECTIVES)


def _where(thread: int) -> str:
    """The innermost line of this package's code that a thread is in, and what that has called last."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return ""
    stack = traceback.extract_stack(frame)
    own = [i for i, line in enumerate(stack) if OWN_CODE in line.filename]
    if not own:
        return ""
    line, last = stack[own[-1]], stack[-1]
    inside = "" if own[-1] == len(stack) - 1 else f" in {last.name}"
    return f"{line.filename.rpartition(OWN_CODE)[2]}:{line.lineno} {line.name}{inside}"
