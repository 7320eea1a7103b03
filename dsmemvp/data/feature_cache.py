"""Features of a frozen vision tower in the place of pixels (`vision.cache_features`), from the files of
feature_files.py. A row is read by its bytes alone, checked, and never mapped: a file that is cut off meanwhile is an
error to be reported.

P image tokens, v width of the tower.
"""

import hashlib
import os
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dsmemvp.data.feature_files import KEY, Settings, about_path, read_about
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.manifest import Manifest
from dsmemvp.dtypes import NAMED
from dsmemvp.errors import UserError


class _Table(NamedTuple):
    """Of all rows of all shards, sorted by `keys`."""

    files: list[Path]
    keys: np.ndarray
    """uint64: the first bytes of the images' SHA-256"""
    shards: np.ndarray
    """Index of the row's file."""
    rows: np.ndarray
    crc32: np.ndarray


@dataclass(frozen=True)
class CachedFeatures:
    """In the place of data/images.py's ImageTransform: an encoded image -> its features. What travels to workers are
    names; each reads the JSON files by itself."""

    pixels: ImageTransform
    settings: Settings
    name: str
    manifests: tuple[Manifest, ...]

    @property
    def resolution(self) -> int:
        return self.pixels.resolution

    @property
    def max_pixels(self) -> int:
        return self.pixels.max_pixels

    def __call__(self, encoded: bytes, where: str) -> torch.Tensor:
        """-> [P, v] of the compute type. Raises SampleError for an image that cannot be decoded, as without a cache;
        UserError if the features are damaged or not there."""
        table = self._table
        key = _key(hashlib.sha256(encoded).digest())
        at = int(np.searchsorted(table.keys, key))
        if at == len(table.keys) or table.keys[at] != key:
            self.pixels(encoded, where)  # an image that cannot be used has none
            raise UserError(
                f"{KEY}: the features of {where} are not in {self.name}; remove that folder beside its shards"
            )
        path, size = table.files[int(table.shards[at])], self.settings.row_bytes
        content = bytearray(_read(path, int(table.rows[at]) * size, size))
        if zlib.crc32(content) != int(table.crc32[at]):
            raise UserError(f"{KEY}: {path} is damaged (row {int(table.rows[at])}); remove its folder")
        return torch.frombuffer(content, dtype=NAMED[self.settings.dtype]).view(self.settings.shape)

    @cached_property
    def _table(self) -> _Table:
        """Raises UserError if a shard has no features."""
        files, keys, shards, rows, checksums = [], [], [], [], []
        places = [(m, shard) for m in self.manifests for shard in range(len(m.shards))]
        for number, (manifest, shard) in enumerate(places):
            about = read_about(manifest, self.name, shard, self.settings)
            if about is None:
                raise UserError(
                    f"{KEY}: {about_path(manifest, self.name, shard)} is not there on this node; data.train and"
                    " data.validation must lie on a file system that all nodes share"
                )
            count = len(about.digests)
            files.append(about.rows)
            keys.append(np.array([_key(digest) for digest in about.digests], dtype=np.uint64))
            shards.append(np.full(count, number, dtype=np.int32))
            rows.append(np.arange(count, dtype=np.int32))
            checksums.append(np.array(about.crc32, dtype=np.uint32))
        columns = [np.concatenate(column) for column in (keys, shards, rows, checksums)]
        order = np.argsort(columns[0], kind="stable")
        return _Table(files, *(column[order] for column in columns))

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("pixels", "settings", "name", "manifests")}

    def check(self) -> None:
        """Whether all shards have features here. Raises UserError."""
        _ = self._table


def _key(digest: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(digest[:8], "little"))


def _read(path: Path, start: int, size: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        content = os.pread(descriptor, size, start)
    finally:
        os.close(descriptor)
    if len(content) != size:
        raise UserError(f"{KEY}: {path} is cut off; remove its folder")
    return content
