"""The bytes of an index file: columns of little-endian numbers, checked before one of them is used.

    16 bytes   "dsmemvp index 3\n"
     5 x u64   samples, members, problems, bytes of all keys, bytes of all problems' texts
    columns    in the order of COLUMNS, with nothing between or behind them

Members, keys and texts of problems lie one after the other over all samples; a column "..._end" says where each
sample's (each problem's) end. So the same shard gives the same bytes, and they are read without being copied.
"""

import itertools
import struct
from collections.abc import Sequence

import numpy as np

from dsmemvp.data.tar import Entry
from dsmemvp.errors import UserError

MAGIC = b"dsmemvp index 3\n"
HEADER = struct.Struct("<16s5Q")
HEADER_BYTES = HEADER.size
COUNTS = ("samples", "members", "problems", "key bytes", "problem bytes")
COLUMNS = (
    ("offset", "<u8", "members"),
    ("size", "<u8", "members"),
    ("member_end", "<u4", "samples"),
    ("crc32", "<u4", "samples"),
    ("length", "<u4", "samples"),
    ("key_end", "<u4", "samples"),
    ("bad", "<u4", "problems"),
    ("problem_end", "<u4", "problems"),
    ("ending", "u1", "members"),
    ("keys", "u1", "key bytes"),
    ("problems", "u1", "problem bytes"),
)
"""(name, type, which count it has as many numbers as). The wide ones come first, so all lie aligned."""
Columns = dict[str, np.ndarray]


def columns_of(entries: Sequence[Entry], endings: Sequence[str]) -> Columns:
    members = [member for entry in entries for member in entry.members]
    keys = [entry.key.encode("utf-8", "surrogateescape") for entry in entries]
    bad = [sample for sample, entry in enumerate(entries) if entry.problem]
    problems = [entries[sample].problem.encode("utf-8", "surrogateescape") for sample in bad]
    columns = {
        "offset": [member.offset for member in members],
        "size": [member.size for member in members],
        "member_end": itertools.accumulate(len(entry.members) for entry in entries),
        "crc32": [entry.crc32 for entry in entries],
        "length": [min(entry.length, 2**32 - 1) for entry in entries],
        "key_end": itertools.accumulate(map(len, keys)),
        "bad": bad,
        "problem_end": itertools.accumulate(map(len, problems)),
        "ending": [endings.index(member.ending) for member in members],
        "keys": b"".join(keys),
        "problems": b"".join(problems),
    }
    return {name: np.array(list(columns[name]), dtype=kind) for name, kind, _ in COLUMNS}


def pack(columns: Columns) -> bytes:
    counts = {of: len(columns[name]) for name, _, of in COLUMNS}
    head = HEADER.pack(MAGIC, *(counts[of] for of in COUNTS))
    return head + b"".join(columns[name].tobytes() for name, _, _ in COLUMNS)


def unpack(content: bytes, endings: int, shard_bytes: int) -> Columns:
    """Read-only arrays over `content`, of an index with `endings` known endings for a shard file of `shard_bytes`
    bytes. Raises UserError with what is wrong."""
    if len(content) < HEADER_BYTES or not content.startswith(MAGIC):
        raise UserError("it does not begin like one")
    counts = dict(zip(COUNTS, HEADER.unpack_from(content)[1:], strict=True))
    whole = HEADER_BYTES + sum(np.dtype(kind).itemsize * counts[of] for _, kind, of in COLUMNS)
    if len(content) != whole:
        raise UserError(f"it has {len(content)} bytes, its header asks for {whole}")
    columns, at = {}, HEADER_BYTES
    for name, kind, of in COLUMNS:
        columns[name] = np.frombuffer(content, kind, counts[of], at) if counts[of] else np.empty(0, kind)
        at += columns[name].nbytes
    _check_ends(columns["member_end"], counts["members"], "members")
    _check_ends(columns["key_end"], counts["key bytes"], "keys")
    _check_ends(columns["problem_end"], counts["problem bytes"], "problems")
    bad = columns["bad"].astype(np.int64)
    if len(bad) and (np.any(np.diff(bad) <= 0) or bad[-1] >= counts["samples"]):
        raise UserError("its problems belong to no sample")
    if np.any(columns["ending"] >= endings):
        raise UserError("it names an unknown kind of member")
    _check_members(columns["offset"], columns["size"], shard_bytes)
    return columns


def _check_ends(ends: np.ndarray, whole: int, what: str) -> None:
    """Each sample's (problem's) end is not before the one before, and the last is the end of all."""
    last = int(ends[-1]) if len(ends) else 0
    if last != whole or np.any(ends[1:] < ends[:-1]):
        raise UserError(f"its {what} do not follow one after the other")


def _check_members(offsets: np.ndarray, sizes: np.ndarray, shard_bytes: int) -> None:
    """Members lie inside the shard, one behind the other."""
    if np.any(sizes > shard_bytes) or np.any(offsets > shard_bytes - np.minimum(sizes, shard_bytes)):
        raise UserError(f"a member lies outside the {shard_bytes} bytes of the shard")
    if np.any(offsets[1:] < offsets[:-1] + sizes[:-1]):
        raise UserError("its members lie over one another")
