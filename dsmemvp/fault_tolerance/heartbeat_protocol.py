"""The messages that a rank sends to rank 0 once a second, and how both sides prove that they belong to the same run.

A connection begins with a handshake in lines of text. The token, which ranks got over the process group, is not sent:

    rank 0 -> rank    challenge
    rank   -> rank 0  its number, a challenge of its own, its proof
    rank 0 -> rank    proof

Then the rank sends a line of JSON, its heartbeat, every second. Rank 0 sends empty lines, and a verdict at last.
"""

import hmac
import json
import re
import secrets
import socket
import time
from dataclasses import asdict, dataclass, fields

from dsmemvp.json_text import parse_json

BEAT = 1.0
"""Seconds between two heartbeats."""
PATIENCE = 5.0
"""Seconds that the other side of a connection has to prove itself."""
LONGEST_TEXT = 4000
"""Characters of a text in a heartbeat; the rest is cut off."""
LONGEST_LINE = 1 << 18
"""Bytes of a heartbeat: JSON writes a character in at most 12."""
LONGEST_CLAIM = 128
"""Bytes of the line in which a rank proves itself."""
CLAIM = re.compile(rb"(\d{1,7}) ([0-9a-f]{32}) ([0-9a-f]{64})")


@dataclass
class RankStatus:
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

    def line(self) -> bytes:
        """As it is sent."""
        cut = {name: value[:LONGEST_TEXT] if isinstance(value, str) else value for name, value in asdict(self).items()}
        return json.dumps(cut).encode() + b"\n"


KINDS = {field.name: field.type for field in fields(RankStatus)}


def read_status(line: bytes, rank: int) -> RankStatus:
    """Of this rank. Raises ValueError if anything in it is not as `RankStatus.line` writes it."""
    where = f"a heartbeat of rank {rank}"
    found = parse_json(line, where)
    if not isinstance(found, dict) or found.keys() != KINDS.keys():
        raise ValueError(f"{where} has other keys")
    for name, value in found.items():
        if type(value) is not KINDS[name]:
            raise ValueError(f"{where}: {name} is of another type")
        if isinstance(value, str) and len(value) > LONGEST_TEXT:
            raise ValueError(f"{where}: {name} is too long")
        if type(value) is int and not 0 <= value < 2**53:
            raise ValueError(f"{where}: {name} is out of range")
    if found["rank"] != rank:
        raise ValueError(f"{where} names rank {found['rank']}")
    return RankStatus(**found)


def challenge() -> str:
    return secrets.token_hex(16)


def proof(token: bytes, side: str, rank: int, asked: str, own: str) -> str:
    """Of knowing the token: `side` is "rank" or "server", `asked` the other side's challenge, `own` this one's."""
    return hmac.new(token, f"{side} {rank} {asked} {own}".encode(), "sha256").hexdigest()


def read_claim(line: bytes, token: bytes, asked: str) -> tuple[int, str]:
    """(rank, its challenge) of one that has proved to know the token. Raises ValueError for all others."""
    found = CLAIM.fullmatch(line)
    if not found:
        raise ValueError("this is no claim")
    rank, own, proved = int(found[1]), found[2].decode(), found[3].decode()
    if not hmac.compare_digest(proved, proof(token, "rank", rank, asked, own)):
        raise ValueError(f"this is not rank {rank}")
    return rank, own


def connect(address: str, port: int, rank: int, token: bytes, seconds: float) -> socket.socket:
    """A connection to rank 0 on which both sides have proved themselves. Raises RuntimeError after `seconds`."""
    until, pause = time.monotonic() + seconds, 0.05
    while True:
        try:
            connection = socket.create_connection((address, port), timeout=min(PATIENCE, seconds))
            try:
                _introduce(connection, rank, token)
                return connection
            except BaseException:
                connection.close()
                raise
        except OSError as error:  # not the user's doing: it was there a moment ago
            if time.monotonic() + pause > until:
                raise RuntimeError(f"rank {rank} cannot reach rank 0 at {address}:{port}: {error}") from None
        time.sleep(pause)
        pause = min(2 * pause, 1.0)


def _introduce(connection: socket.socket, rank: int, token: bytes) -> None:
    asked, own = _read(connection, 32), challenge()
    connection.sendall(f"{rank} {own} {proof(token, 'rank', rank, asked, own)}\n".encode())
    if not hmac.compare_digest(_read(connection, 64), proof(token, "server", rank, own, asked)):
        raise ConnectionError("what answers there is not rank 0 of this run")


def _read(connection: socket.socket, size: int) -> str:
    """A line of `size` characters."""
    line = b""
    while len(line) <= size:
        part = connection.recv(size + 1 - len(line))
        if not part:
            raise ConnectionError("the connection was closed")
        line += part
    if not line.endswith(b"\n") or not line.isascii():
        raise ConnectionError("what answers there is not rank 0 of a run")
    return line[:-1].decode()
