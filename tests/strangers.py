"""Connections of every hostile kind to the port of a heartbeat server."""

import contextlib
import json
import socket
import struct
from collections.abc import Callable
from dataclasses import asdict

from dsmemvp.fault_tolerance.heartbeat_protocol import RankStatus

HEX = b"0123456789abcdef"
CHUNK = bytes(1 << 20)


def _until_closed(connection: socket.socket, megabytes: int) -> None:
    for _ in range(megabytes):
        connection.sendall(CHUNK)


def _reset(connection: socket.socket) -> None:
    connection.sendall(b"0 ")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _line(**news) -> bytes:
    return RankStatus(**{"rank": 0, "host": "x", **news}).line()


KINDS: dict[str, Callable[[socket.socket], object]] = {
    "silent": lambda c: None,
    "newline": lambda c: c.sendall(b"\n"),
    "http": lambda c: c.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "binary": lambda c: c.sendall(bytes(range(256)) * 8),
    "not UTF-8": lambda c: c.sendall(b"\xff\xfe\n"),
    "a number": lambda c: c.sendall(b"5\n"),
    "deep JSON": lambda c: c.sendall(b"[" * 200_000 + b"\n"),
    "without a newline": lambda c: _until_closed(c, 300),
    "heartbeat": lambda c: c.sendall(_line(rank=1, moves=9)),
    "error of the user's": lambda c: c.sendall(_line(error="give up", code=1)),
    "lone error word": lambda c: c.sendall(json.dumps({"error": "give up", "code": 1}).encode() + b"\n"),
    "goodbyes": lambda c: c.sendall((_line(bye=True) + _line(rank=1, bye=True)) * 100),
    "of no rank": lambda c: c.sendall(json.dumps(asdict(RankStatus(0, "x")) | {"rank": -1}).encode() + b"\n"),
    "guessed proof": lambda c: c.sendall(b"1 " + HEX * 2 + b" " + HEX * 4 + b"\n"),
    "proof of no rank": lambda c: c.sendall(b"9999999 " + HEX * 2 + b" " + HEX * 4 + b"\n"),
    "echo": lambda c: c.sendall(b"0 " + c.recv(33).strip() + b" " + HEX * 4 + b"\n"),
    "half a line": lambda c: c.sendall(b"0 " + HEX),
    "half a line and an end": lambda c: (c.sendall(b"0 " + HEX), c.shutdown(socket.SHUT_WR)),
    "reset": _reset,
}


def intrude(address: tuple[str, int], kind: str) -> socket.socket:
    """A connection of that kind, left open as far as this side goes. Raises OSError where nobody listens."""
    connection = socket.create_connection(address, timeout=10)
    with contextlib.suppress(OSError):  # the server may close it at any time
        KINDS[kind](connection)
    return connection


def closed(connection: socket.socket) -> bool:
    """Whether the server closes it within 10 s."""
    try:
        while connection.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True
