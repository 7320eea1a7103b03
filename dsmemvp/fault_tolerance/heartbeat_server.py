"""Rank 0's end of all heartbeats: hears where every rank is, and passes the verdict when one is lost (heartbeat.py).

Whoever reaches the port can connect. A connection is a stranger's until its first line proves that it knows the run's
token (heartbeat_protocol.py). A stranger can end its own connection and nothing else, has seconds for the proof, and
strangers are few at a time. When all ranks have been heard, nobody is let in any more.
"""

import errno
import json
import selectors
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from dsmemvp.fault_tolerance.failure_detector import FailureDetector
from dsmemvp.fault_tolerance.heartbeat_protocol import (
    BEAT,
    LONGEST_CLAIM,
    LONGEST_LINE,
    PATIENCE,
    challenge,
    proof,
    read_claim,
    read_status,
)

PAUSE = 5 * BEAT
"""A longer gap in a thread's own time means that its process was stopped: nothing was missed by the others then."""
STRANGERS = 64
"""So many connections, beside one for every rank, may wait for their proof at a time."""
LAST_WORDS = 2 * BEAT
"""Seconds in which ranks take in the verdict."""
LOOK = BEAT / 10
"""Seconds between two looks at all ranks, however many heartbeats come between them."""
ANY_ADDRESS = ""


@dataclass
class _Connection:
    rank: int = -1
    """Who has proved to be there; -1 for a stranger."""
    heard: bool = False
    """Whether a heartbeat has come."""
    rest: bytes = b""
    """Half a line."""
    asked: str = field(default_factory=challenge)
    since: float = field(default_factory=time.monotonic)


def open_listeners(addresses: Iterable[str]) -> dict[str, socket.socket]:
    """By address: listeners at the addresses at which ranks reach this machine, each on a port of its own, and nowhere
    else. Ranks tell these addresses, since MASTER_ADDR may mean another one here: Debian's /etc/hosts gives a machine's
    own name as 127.0.1.1. For addresses that this machine does not have, since they are translated on the way, there is
    one listener on all addresses, as ANY_ADDRESS. Raises OSError."""
    listeners: dict[str, socket.socket] = {}
    for address in sorted(set(addresses)):
        try:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listeners[address] = socket.create_server((address, 0), family=family, backlog=4096)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EINVAL):  # EINVAL: an IPv6 address of one link
                raise
            if ANY_ADDRESS not in listeners:
                dual = socket.has_dualstack_ipv6()
                family = socket.AF_INET6 if dual else socket.AF_INET
                everywhere = socket.create_server(("", 0), family=family, backlog=4096, dualstack_ipv6=dual)
                listeners[ANY_ADDRESS] = everywhere
    return listeners


class HeartbeatServer:
    """Listens until all ranks are done. `silence` and `standstill` in seconds, as in Heartbeat."""

    def __init__(self, listeners: Iterable[socket.socket], world: int, token: bytes, silence: float, standstill: float):
        self._listeners, self._world, self._token = list(listeners), world, token
        self._detector = FailureDetector(world, silence, standstill, time.monotonic())
        self._connections: dict[socket.socket, _Connection] = {}  # oldest first
        self._of_rank: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        for listener in self._listeners:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)

    def listen(self) -> None:
        """To the end of the run, or to a verdict, which is sent to all ranks."""
        before = sent = time.monotonic()
        while not self._detector.done:
            for key, _ in self._selector.select(timeout=LOOK):
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if ready in self._listeners:
                    self._accept(ready)
                elif ready in self._connections and not self._receive(ready):
                    self._close(ready)
            now = time.monotonic()
            if now - before < LOOK:
                continue
            if now - before > PAUSE:
                self._detector.forgive(now - before)
            before = now
            self._close_late_strangers(now)
            if self._listeners and sum(c.heard for c in self._connections.values()) == self._world:
                self._let_nobody_in()
            if found := self._detector.verdict(now):
                self._tell_verdict(*found)
                return  # connections stay open: one that is closed early may lose what was sent last
            if now - sent > BEAT:
                self._beat()
                sent = now
        self._let_nobody_in()
        for connection in list(self._connections):
            self._close(connection)

    def _accept(self, listener: socket.socket) -> None:
        try:
            new, _ = listener.accept()
        except OSError as error:
            # without descriptors the listener stays readable; others have hung up before they were accepted
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED) and not self._close_oldest_stranger():
                time.sleep(BEAT / 20)
            return
        if len(self._connections) - len(self._of_rank) >= STRANGERS + self._world:
            self._close_oldest_stranger()
        new.setblocking(False)
        self._connections[new] = state = _Connection()
        self._selector.register(new, selectors.EVENT_READ)
        self._send(new, state.asked.encode() + b"\n")

    def _receive(self, connection: socket.socket) -> bool:
        """Whether the connection is good for more."""
        state = self._connections[connection]
        try:
            part = connection.recv(1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            return False
        *lines, state.rest = (state.rest + part).split(b"\n")
        try:
            for line in lines:
                if state.rank < 0:
                    self._introduce(connection, line)
                else:
                    self._detector.hear(read_status(line, state.rank), time.monotonic())
                    state.heard = True
        except ValueError:
            return False
        return bool(part) and len(state.rest) <= (LONGEST_CLAIM if state.rank < 0 else LONGEST_LINE)

    def _introduce(self, connection: socket.socket, line: bytes) -> None:
        """Raises ValueError if this is no rank, or one that is connected already."""
        state = self._connections[connection]
        rank, own = read_claim(line, self._token, state.asked)
        old = self._of_rank.get(rank)
        if rank >= self._world or (old is not None and self._connections[old].heard):
            raise ValueError(f"rank {rank} is not expected")
        if old is not None:  # it missed the answer, and tries again
            self._close(old)
        state.rank, self._of_rank[rank] = rank, connection
        self._send(connection, proof(self._token, "server", rank, own, state.asked).encode() + b"\n")

    def _close(self, connection: socket.socket) -> None:
        state = self._connections.pop(connection)
        self._selector.unregister(connection)
        connection.close()
        if state.rank >= 0:
            del self._of_rank[state.rank]
        if state.heard:
            self._detector.lose(state.rank, time.monotonic())

    def _close_oldest_stranger(self) -> bool:
        """Whether there was one."""
        for connection, state in self._connections.items():
            if state.rank < 0:
                self._close(connection)
                return True
        return False

    def _close_late_strangers(self, now: float) -> None:
        late = [c for c, state in self._connections.items() if state.rank < 0 and now - state.since > PATIENCE]
        for connection in late:
            self._close(connection)

    def _let_nobody_in(self) -> None:
        for listener in self._listeners:
            self._selector.unregister(listener)
            listener.close()
        self._listeners = []
        while self._close_oldest_stranger():
            pass

    def _beat(self) -> None:
        for connection in self._of_rank.values():
            self._send(connection, b"\n")

    def _send(self, connection: socket.socket, data: bytes) -> int:
        """Bytes that need no further sending. Never waits: one that does not read must not keep the others waiting."""
        try:
            return connection.send(data)
        except BlockingIOError:
            return 0
        except OSError:  # closed, as the selector says next
            return len(data)

    def _tell_verdict(self, verdict: str, code: int) -> None:
        """To this rank last: its process ends with it."""
        data = json.dumps({"verdict": verdict, "code": code}).encode() + b"\n"
        for ranks in (self._of_rank.keys() - {0}, self._of_rank.keys() & {0}):
            unsent, until = {self._of_rank[rank]: data for rank in ranks}, time.monotonic() + LAST_WORDS
            while unsent and time.monotonic() < until:
                unsent = {c: rest for c, old in unsent.items() if (rest := old[self._send(c, old) :])}
                if unsent:
                    time.sleep(BEAT / 100)
