"""Rank 0's heartbeat server over real connections: ranks that prove themselves, and strangers of every hostile kind."""

import contextlib
import json
import os
import resource
import socket
import threading
import time

import pytest
from strangers import KINDS, closed, intrude

from dsmemvp.fault_tolerance.failure_detector import GATHER
from dsmemvp.fault_tolerance.heartbeat_protocol import RankStatus, connect
from dsmemvp.fault_tolerance.heartbeat_server import ANY_ADDRESS, STRANGERS, HeartbeatServer, open_listeners

TOKEN = b"a token of the tests"
HERE = "127.0.0.1"


class Running:
    """A server of two ranks, of which rank 0 is connected."""

    def __init__(self) -> None:
        listeners = open_listeners([HERE])
        self.address = listeners[HERE].getsockname()
        self.server = HeartbeatServer(listeners.values(), 2, TOKEN, silence=60, standstill=60)
        self.thread = threading.Thread(target=self.server.listen, daemon=True)
        self.thread.start()
        self.first = self.rank(0)

    def rank(self, rank: int, **news) -> socket.socket:
        """Connected, and heard once."""
        connection = connect(*self.address, rank, TOKEN, seconds=10)
        connection.sendall(RankStatus(rank, "n0", **news).line())
        return connection

    def end(self, second: socket.socket) -> None:
        """Both ranks are done; the server ends, and has passed no verdict."""
        for rank, connection in ((0, self.first), (1, second)):
            connection.sendall(RankStatus(rank, "n0", bye=True).line())
        self.thread.join(timeout=10)
        assert not self.thread.is_alive()
        for connection in (self.first, second):
            assert _said(connection).strip(b"\n") == b""


def _said(connection: socket.socket) -> bytes:
    """What the server has said until it closed the connection."""
    said = b""
    try:
        while part := connection.recv(1 << 16):
            said += part
    except ConnectionError:
        pass
    connection.close()
    return said


def _verdict(connection: socket.socket) -> dict:
    with connection.makefile("rb") as lines:
        return json.loads(next(line for line in lines if line.strip()))


@pytest.fixture
def running():
    return Running()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("silent", "half a line", "reset")])
def test_a_stranger_ends_its_own_connection_and_nothing_else(running, kind):
    assert closed(intrude(running.address, kind))
    running.end(running.rank(1))


def test_strangers_are_few_at_a_time_and_have_to_go_when_all_ranks_are_there(running):
    kinds = [*KINDS, *["silent"] * 200]
    strangers = [intrude(running.address, kind) for kind in kinds if kind != "without a newline"]
    assert all(closed(stranger) for stranger in strangers[:100])
    second = running.rank(1)
    assert all(closed(stranger) for stranger in strangers)
    with pytest.raises(ConnectionRefusedError):
        intrude(running.address, "silent")
    time.sleep(GATHER + 0.5)  # in which a verdict would come
    running.end(second)


def test_strangers_do_not_take_the_descriptors_of_ranks():
    """In a process that may have no more open files than the server lets strangers take."""
    listeners = open_listeners([HERE])
    address = listeners[HERE].getsockname()
    child = os.fork()
    if not child:
        open_files = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files + STRANGERS // 2, resource.getrlimit(7)[1]))
        HeartbeatServer(listeners.values(), 2, TOKEN, silence=60, standstill=60).listen()
        os._exit(7)
    try:
        listeners[HERE].close()
        strangers = [intrude(address, "silent") for _ in range(1015)]
        used = _cpu_seconds(child)
        time.sleep(0.5)
        assert _cpu_seconds(child) - used < 0.25  # it waits
        ranks = [connect(*address, rank, TOKEN, seconds=10) for rank in (0, 1)]
        for bye in (False, True):
            for rank, connection in enumerate(ranks):
                connection.sendall(RankStatus(rank, "n0", bye=bye).line())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert all(closed(stranger) for stranger in strangers)
    except BaseException:
        os.kill(child, 9)
        os.waitpid(child, 0)
        raise


def _cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_second_claim_for_a_rank_that_is_there_is_refused(running):
    time.sleep(0.2)
    with pytest.raises(RuntimeError, match="rank 0 cannot reach rank 0 at"):
        connect(*running.address, 0, TOKEN, seconds=0.2)
    for rank, token in ((2, TOKEN), (1, b"another token")):
        with pytest.raises(RuntimeError, match="cannot reach rank 0"):
            connect(*running.address, rank, token, seconds=0.2)
    running.end(running.rank(1))


def test_a_rank_that_missed_the_answer_may_try_again(running):
    with connect(*running.address, 1, TOKEN, seconds=10):
        second = running.rank(1)
    running.end(second)


@pytest.mark.parametrize("answer", [b"x" * 64, b"0" * 64, b"", b"\xff" * 64])
def test_a_rank_does_not_believe_a_server_without_the_token(answer):
    def serve() -> None:
        with contextlib.suppress(OSError), server.accept()[0] as connection:
            connection.sendall(b"0123456789abcdef" * 2 + b"\n")
            connection.recv(256)
            connection.sendall(answer + b"\n" * bool(answer))

    with socket.create_server((HERE, 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(RuntimeError, match="cannot reach rank 0"):
            connect(*server.getsockname(), 1, TOKEN, seconds=0.02)
        thread.join(timeout=10)


def test_heartbeats_may_come_in_pieces(running):
    second = connect(*running.address, 1, TOKEN, seconds=10)
    line = RankStatus(1, "n0", 3, 2, "saving").line()
    for piece in (line[:5], line[5:-1], line[-1:]):
        second.sendall(piece)
        time.sleep(0.05)
    running.end(second)


def test_a_rank_whose_connection_breaks_has_died_and_the_others_are_told(running):
    running.rank(1, step=8, doing="saving").close()
    found = _verdict(running.first)
    assert found["code"] == 70
    assert found["verdict"] == "rank 1 on n0 (after step 8, saving) died\n  rank 0: starting"


def test_a_rank_that_sends_nonsense_is_lost(running):
    second = running.rank(1)
    second.sendall(b"[" * 100_000 + b"\n")
    assert _verdict(running.first)["verdict"].startswith("rank 1 on n0 (after step 0, starting) died")


def test_the_server_listens_where_ranks_reach_it_and_nowhere_else():
    listeners = open_listeners([HERE, HERE, "127.0.1.1"])
    assert {address: listener.getsockname()[0] for address, listener in listeners.items()} == {
        HERE: HERE,
        "127.0.1.1": "127.0.1.1",
    }
    for listener in listeners.values():
        listener.close()


def test_an_address_that_is_translated_on_the_way_takes_all_addresses():
    listeners = open_listeners(["203.0.113.1", HERE, "203.0.113.2"])
    assert set(listeners) == {HERE, ANY_ADDRESS}
    socket.create_connection((HERE, listeners[ANY_ADDRESS].getsockname()[1])).close()
    for listener in listeners.values():
        listener.close()
