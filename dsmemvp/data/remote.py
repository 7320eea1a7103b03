"""Shards that lie elsewhere: downloaded through webdataset's openers into a local cache that is kept below a size.

    CACHE/lists/ID/dataset.json, *.index    what lies there; small, fetched anew (or checked) at every start
    CACHE/shards/ID/SHA256-*.tar            the shards; those not used for longest are deleted first
    CACHE/locks/, CACHE/partial/            one download of a file at a time on a node, renamed when it is whole

A file is only taken over when its checksum is the manifest's. A shard that is deleted while another process reads it
stays readable there, as Unix has it.
"""

import fcntl
import hashlib
import os
import shlex
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from webdataset.cache import LRUCleanup
from webdataset.gopen import gopen, gopen_schemes

from dsmemvp.data.durable import flush

ATTEMPTS = 3
CHUNK = 1 << 20


@dataclass(frozen=True)
class Cache:
    """Where remote shards may be kept, and what may be opened."""

    folder: Path
    limit: int
    """Bytes of shards kept, give or take those being downloaded."""
    pipes: bool
    """Whether `pipe:` locations, which run a shell command, are allowed."""


@dataclass(frozen=True)
class Remote:
    """A folder of shards at a location: a URL that file names are appended to, or `pipe:` and a command in which {name}
    stands for the file name."""

    location: str
    cache: Cache

    @property
    def lists(self) -> Path:
        return self.cache.folder / "lists" / self._id

    @property
    def shards(self) -> Path:
        return self.cache.folder / "shards" / self._id

    def path(self, name: str, sha256: str) -> Path:
        """Where a shard is kept. Its content is part of the name: one that is prepared anew has often the old size."""
        return self.shards / f"{sha256[:16]}-{name}"

    @property
    def _id(self) -> str:
        return hashlib.sha256(self.location.encode()).hexdigest()[:16]

    def check(self) -> None:
        """Raises ValueError where the location cannot or must not be opened."""
        scheme = self.location.partition(":")[0]
        if scheme == "pipe":
            if not self.cache.pipes:
                raise ValueError(f"{self.location}: `pipe:` runs a shell command; allow it with data.allow_pipe=true")
            if "{name}" not in self.location:
                raise ValueError(f"{self.location}: write {{name}} where the command takes the file name")
        elif scheme not in gopen_schemes:
            known = ", ".join(sorted(set(gopen_schemes) - {"__default__", "pipe"}))
            raise ValueError(
                f"{self.location}: {scheme} cannot be opened, only {known}; for others name a command, such as"
                ' "pipe:aws s3 cp s3://bucket/folder/{name} -"'
            )

    def fetch_list(self, name: str, sha256: str = "") -> Path:
        """The manifest, fetched anew, or an index, if it is not here already."""
        path = self.lists / name
        with self._lock(name):
            if not (sha256 and path.is_file() and _digest(path) == sha256):
                self._download(name, path, sha256)
        return path

    def fetch_shard(self, name: str, size: int, sha256: str) -> Path:
        """A shard on the local disk; downloaded where it is missing. Raises ValueError where what comes is not it."""
        path = self.path(name, sha256)
        with self._lock(name):
            if not _used_now(path, size):
                kept = LRUCleanup(
                    str(self.cache.folder / "shards"), max(0, self.cache.limit - size), os.path.getmtime, interval=None
                )
                kept.cleanup()
                self._download(name, path, sha256)
        return path

    def _download(self, name: str, to: Path, sha256: str) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        partial = self.cache.folder / "partial" / f"{self._id}-{name}"
        partial.parent.mkdir(parents=True, exist_ok=True)
        why = ""
        try:
            for _ in range(ATTEMPTS):
                why = self._attempt(name, partial, sha256)
                if not why:
                    partial.replace(to)
                    return
        finally:
            partial.unlink(missing_ok=True)  # on a full disk it would keep others from their space
        raise ValueError(f"{self.location}: {name} cannot be fetched ({why}; {ATTEMPTS} attempts)")

    def _attempt(self, name: str, partial: Path, sha256: str) -> str:
        """Why it failed; empty if it did not. A full local disk is an OSError."""
        digest = hashlib.sha256()
        with partial.open("wb") as file:
            try:
                with gopen(self._url(name)) as stream:
                    while chunk := stream.read(CHUNK):
                        digest.update(chunk)
                        file.write(chunk)
            except OSError as error:
                if error.errno is not None:
                    raise
                return str(error)  # webdataset's for a command that ended with an error
        flush(partial)
        return "its checksum is not the manifest's" if sha256 and digest.hexdigest() != sha256 else ""

    def _url(self, name: str) -> str:
        if self.location.startswith("pipe:"):
            if shlex.quote(name) != name or name.startswith("-"):
                # quotes around {name} in the command would undo ours
                raise ValueError(f"{self.location}: {name!r} must not stand in a shell command; rename the file")
            return self.location.replace("{name}", name)
        return f"{self.location.rstrip('/')}/{urllib.parse.quote(name)}"

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        path = self.cache.folder / "locks" / f"{self._id}-{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def is_remote(location: str) -> bool:
    return "://" in location or location.startswith("pipe:")


def _used_now(path: Path, size: int) -> bool:
    """Whether a shard is in the cache; if so, it is marked for the clean-up of other processes as used now."""
    try:
        os.utime(path)
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
