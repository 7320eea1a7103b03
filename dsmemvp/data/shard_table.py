"""The shards of a data set as columns: a hundred bytes each, so that 40,000 of them travel to every worker."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np


@dataclass(frozen=True)
class Shard:
    name: str
    samples: int
    bytes: int
    sha256: str
    """64 hexadecimal digits, as the next."""
    index_sha256: str


class ShardTable(Sequence[Shard]):
    """Shards in arrays; each is made as it is asked for."""

    def __init__(self, shards: Iterable[Shard]):
        rows = list(shards)
        names = [shard.name.encode("utf-8", "surrogatepass") for shard in rows]
        self._names = b"".join(names)
        self._starts = np.array([0, *itertools.accumulate(map(len, names))], dtype=np.int64)
        self.samples = np.array([shard.samples for shard in rows], dtype=np.int64)
        """[shards]"""
        self.bytes = np.array([shard.bytes for shard in rows], dtype=np.int64)
        """[shards]"""
        self._digests = b"".join(bytes.fromhex(shard.sha256 + shard.index_sha256) for shard in rows)

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, at: int) -> Shard: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Shard, ...]: ...
    def __getitem__(self, at: int | slice) -> Shard | tuple[Shard, ...]:
        if isinstance(at, slice):
            return tuple(self[number] for number in range(len(self))[at])
        at = range(len(self))[at]
        name = self._names[self._starts[at] : self._starts[at + 1]].decode("utf-8", "surrogatepass")
        digests = self._digests[64 * at : 64 * at + 64]
        return Shard(name, int(self.samples[at]), int(self.bytes[at]), digests[:32].hex(), digests[32:].hex())

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Shard.__eq__, self, other))
