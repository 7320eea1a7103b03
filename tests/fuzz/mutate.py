"""Damage of the kinds that disks, networks and people do to files."""

import random
import re

NUMBERS = (b"0", b"-1", b"1e999", b"1000000000", b"18446744073709551616", b"1" * 5000, b"NaN", b"null", b'"x"', b"[]")
WORDS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\0\0\1\0\0")


def mutated(content: bytes, rng: random.Random) -> bytes:
    """`content`, damaged once in one of the ways below."""
    return rng.choice(WAYS)(content, rng)


def _place(content: bytes, rng: random.Random) -> int:
    """Anywhere, and half the time near an end, where headers and directories are."""
    size = len(content)
    at = rng.randrange(size + 1) if size else 0
    return rng.choice((at, at, min(at, rng.randrange(600)), max(0, size - rng.randrange(600))))


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 4)) if content else 0):
        changed[min(_place(content, rng), len(content) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)]


def _insert(content: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + rng.randbytes(rng.choice((1, 4, 64, 512))) + content[at:]


def _double(content: bytes, rng: random.Random) -> bytes:
    at, size = _place(content, rng), rng.choice((1, 16, 512, len(content)))
    return content[: at + size] + content[at:]


def _lose(content: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + content[at + rng.choice((1, 16, 512)) :]


def _word(content: bytes, rng: random.Random) -> bytes:
    at, word = _place(content, rng), rng.choice(WORDS)
    return content[:at] + word + content[at + len(word) :]


def _number(content: bytes, rng: random.Random) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if not found:
        return _word(content, rng)
    one = rng.choice(found)
    return content[: one.start()] + rng.choice(NUMBERS) + content[one.end() :]


def _nest(content: bytes, rng: random.Random) -> bytes:
    found = list(re.finditer(rb"[:\[,] ?", content))
    at = rng.choice(found).end() if found else _place(content, rng)
    return content[:at] + rng.choice((b"[", b'{"a":')) * rng.choice((500, 100_000)) + content[at:]


WAYS = (_flip, _flip, _cut, _insert, _double, _lose, _word, _number, _number, _nest)
