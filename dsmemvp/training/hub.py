"""The first rank's ear: hears where every rank is, and passes the verdict when one is lost (watch.py)."""

import contextlib
import json
import selectors
import socket
import time
from dataclasses import dataclass

from dsmemvp.stopping import UNEXPECTED, USER_ERROR

BEAT = 1.0
"""Seconds between two words of a rank."""
GATHER = 1.5
"""Seconds to wait for more news after the first bad one: the others' errors follow from the cause within these."""
PAUSE = 5 * BEAT
"""A longer gap in a thread's own time means that its process was stopped: nothing was missed by the others then."""
NAMED = 8
"""At most so many ranks are named."""


@dataclass
class Word:
    """What a rank says of itself."""

    rank: int
    host: str
    moves: int = 0
    """Grows whenever the main thread gets on to something else."""
    step: int = 0
    """Steps made."""
    doing: str = "starting"
    where: str = ""
    """Innermost lines of the main thread."""
    waiting: bool = False
    """That is a collective, which waits for other ranks."""
    error: str = ""
    """Why this rank is ending; empty while it works."""
    code: int = 0
    """The exit code that goes with the error."""
    follows: bool = False
    """The error came out of a collective: its cause is another rank's."""
    bye: bool = False
    """It is done."""


@dataclass
class _Heard:
    """A rank, as the first one knows it."""

    word: Word
    last: float
    """When its last word came, on this process's clock."""
    moved: float
    """When it last got on to something else."""


@dataclass
class _Line:
    """A connection."""

    rank: int = -1
    """Who speaks there; unknown before the first word."""
    rest: bytes = b""
    """Half a word."""


class Hub:
    """Listens until all ranks are done. `silence` and `standstill` in seconds, as in Watch."""

    def __init__(self, listener: socket.socket, world: int, silence: float, standstill: float):
        self._listener = listener
        self._silence, self._standstill = silence, standstill
        now = time.monotonic()
        # one that is lost before its first word is missed as well
        self._ranks = {rank: _Heard(Word(rank, "a host not known yet"), now, now) for rank in range(world)}
        self._lines: dict[socket.socket, _Line] = {}
        self._died: list[int] = []
        self._bad_news = 0.0

    def listen(self) -> None:
        """To the end of the run, or to a verdict, which is told to all ranks."""
        selector = selectors.DefaultSelector()
        selector.register(self._listener, selectors.EVENT_READ)
        before = told = time.monotonic()
        while not all(heard.word.bye for heard in self._ranks.values()):
            for key, _ in selector.select(timeout=BEAT / 2):
                line = key.fileobj
                assert isinstance(line, socket.socket)
                if line is self._listener:
                    new, _ = line.accept()
                    new.settimeout(BEAT)
                    self._lines[new] = _Line()
                    selector.register(new, selectors.EVENT_READ)
                elif not self._receive(line):
                    selector.unregister(line)
            now = time.monotonic()
            if now - before > PAUSE:
                for heard in self._ranks.values():
                    heard.last, heard.moved = heard.last + now - before, heard.moved + now - before
            before = now
            if found := self._verdict(now):
                verdict, code = found
                self._tell_all(json.dumps({"verdict": verdict, "code": code}))
                return
            if now - told > BEAT:
                self._tell_all("")
                told = now
        self._listener.close()

    def _receive(self, line: socket.socket) -> bool:
        """Whether the line is still open."""
        state = self._lines[line]
        try:
            part = line.recv(1 << 16)
            *texts, state.rest = (state.rest + part).split(b"\n")
            for text in texts:
                self._hear(state, Word(**json.loads(text)))
        except (OSError, ValueError, TypeError):  # broken, or somebody else's
            part = b""
        if not part and state.rank >= 0 and not self._ranks[state.rank].word.bye:
            self._died.append(state.rank)
            self._bad_news = self._bad_news or time.monotonic()
        return bool(part)

    def _hear(self, line: "_Line", word: Word) -> None:
        now = time.monotonic()
        old = self._ranks.get(word.rank)
        if old is None:
            raise ValueError(f"there is no rank {word.rank}")
        moved = old.moved if old.word.moves == word.moves else now
        self._ranks[word.rank] = _Heard(word, now, moved)
        line.rank = word.rank
        if word.error:
            self._bad_news = self._bad_news or now

    def _tell_all(self, text: str) -> None:
        for line in self._lines:
            with contextlib.suppress(OSError):
                line.sendall(text.encode() + b"\n")

    def _verdict(self, now: float) -> tuple[str, int] | None:
        """What the run ends with, and the exit code; or None."""
        if self._bad_news:
            return self._of_bad_news() if now - self._bad_news > GATHER else None
        working = {rank: heard for rank, heard in self._ranks.items() if not heard.word.bye}
        silent = [rank for rank, heard in working.items() if now - heard.last > self._silence]
        if silent:
            return self._with_others(f"no sign of life for {self._silence:g} s of {self._names(silent)}", silent)
        stuck = {rank: h.word.moves for rank, h in working.items() if now - h.moved > self._standstill}
        if not stuck:
            return None
        behind = [rank for rank, moves in stuck.items() if moves == min(stuck.values())]
        behind = [rank for rank in behind if not working[rank].word.waiting] or behind
        everyone = "no rank has" if len(stuck) == len(working) else "not every rank has"
        what = f"{everyone} moved on for {self._standstill:g} s; furthest behind: {self._names(behind)}"
        return self._with_others(what, behind)

    def _of_bad_news(self) -> tuple[str, int]:
        if self._died:
            return self._with_others(f"{self._names(self._died)} died", self._died)
        failed = sorted((h.word for h in self._ranks.values() if h.word.error), key=lambda word: word.follows)
        for word in failed:
            if word.code == USER_ERROR:
                return f"error: {word.error}", USER_ERROR
        return self._with_others(f"{self._names([failed[0].rank])} failed: {failed[0].error}", [failed[0].rank])

    def _names(self, ranks: list[int]) -> str:
        words = [self._ranks[rank].word for rank in sorted(ranks)]
        names = [f"rank {w.rank} on {w.host} (after step {w.step}, {w.doing}{_at(w.where)})" for w in words[:NAMED]]
        return ", ".join(names) + (f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else "")

    def _with_others(self, what: str, culprits: list[int]) -> tuple[str, int]:
        """The verdict, and what the other ranks were waiting in."""
        places: dict[str, list[int]] = {}
        for rank, heard in sorted(self._ranks.items()):
            if rank not in culprits and not heard.word.bye:
                places.setdefault(f"{heard.word.doing}{_at(heard.word.where)}", []).append(rank)
        for place, ranks in places.items():
            listed = ", ".join(map(str, ranks[:NAMED])) + (" ..." if len(ranks) > NAMED else "")
            what += f"\n  rank {listed}: {place}"
        return what, UNEXPECTED


def _at(where: str) -> str:
    return f" at {where}" if where else ""
