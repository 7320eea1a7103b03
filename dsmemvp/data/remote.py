"""Shards that lie elsewhere (data/location.py): fetched (data/fetch.py) into a local cache (data/cache.py).

A file is only taken over when its checksum is the manifest's. When a shard is opened again, it must still be the file
that was compared: otherwise it is compared again, and fetched anew if it has changed.
"""

import hashlib
import io
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dsmemvp.data.cache import Cache, new_file, open_file
from dsmemvp.data.fetch import fetch
from dsmemvp.data.location import location_id, masked
from dsmemvp.errors import UserError
from dsmemvp.json_text import MOST


@dataclass(frozen=True)
class Remote:
    """A folder of shards at a location that check_location has let pass."""

    location: str
    cache: Cache

    @property
    def lists(self) -> Path:
        return self.cache.folder / "lists" / self._id

    def path(self, name: str, sha256: str) -> Path:
        """Where a shard is kept."""
        return self.cache.folder / "shards" / self._id / self._kept(name, sha256)

    @property
    def _id(self) -> str:
        return location_id(self.location)

    def fetch_manifest(self, name: str) -> bytes:
        """Its content, fetched anew. Raises UserError, OSError."""
        into = io.BytesIO()
        fetch(self.location, name, into, MOST, "", self.cache.timeout)
        return into.getvalue()

    def fetch_index(self, name: str, most: int, sha256: str) -> bytes:
        """The content of an index of at most `most` bytes, out of the cache if it is there. Raises UserError,
        OSError."""
        shown = self.lists / name
        with self.cache.locked(f"{self._id}-{name}"), self.cache.opened("lists", self._id) as lists:
            try:
                with open(open_file(name, lists, shown), "rb") as file:
                    content = file.read(most)
            except FileNotFoundError:
                content = None
            if content is None or hashlib.sha256(content).hexdigest() != sha256:
                with open(self._download(name, name, lists, most, sha256), "rb") as file:
                    file.seek(0)
                    content = file.read()
            return content

    def open_shard(self, name: str, size: int, sha256: str) -> int:
        """Descriptor of a shard in the cache, to read from; fetched if it is not there. Raises UserError, OSError."""
        kept, id = self._kept(name, sha256), self._id
        cache = self.cache
        with (
            cache.locked(f"{id}-{name}"),
            cache.opened("shards", id) as shards,
            cache.opened("stamps", id) as stamps,
        ):
            descriptor = self._known(kept, shards, stamps, size, sha256)
            if descriptor is None:
                cache.make_room(size)
                descriptor = self._download(name, kept, shards, size, sha256)
                _write_stamp(kept, stamps, _identity(descriptor, sha256))
            return descriptor

    def _known(self, kept: str, shards: int, stamps: int, size: int, sha256: str) -> int | None:
        """Descriptor of a shard that is in the cache, whole and unchanged; it is marked as used now."""
        try:
            descriptor = open_file(kept, shards, self.cache.folder / "shards" / self._id / kept)
        except FileNotFoundError:
            return None
        try:
            if os.fstat(descriptor).st_size == size:
                identity = _identity(descriptor, sha256)
                if self._stamped(kept, stamps) == identity:
                    with suppress(FileNotFoundError):  # another process is making room: what is open stays readable
                        os.utime(kept, dir_fd=stamps, follow_symlinks=False)
                    return descriptor
                if _digest(descriptor) == sha256:
                    _write_stamp(kept, stamps, identity)
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _stamped(self, kept: str, stamps: int) -> bytes:
        try:
            with open(open_file(kept, stamps, self.cache.folder / "stamps" / self._id / kept), "rb") as file:
                return file.read(1000)
        except FileNotFoundError:
            return b""

    def _download(self, name: str, to: str, folder: int, most: int, sha256: str) -> int:
        """Descriptor of the file `name`, of at most `most` bytes, that is `to` in an open folder from now on."""
        partial = f"{self._id}-{name}"
        with self.cache.opened("partial") as partials:
            descriptor = new_file(partial, partials)
            try:
                with open(descriptor, "wb", closefd=False) as file:
                    fetch(self.location, name, file, most, sha256, self.cache.timeout)
                os.fsync(descriptor)
                os.rename(partial, to, src_dir_fd=partials, dst_dir_fd=folder)
            except BaseException:
                os.close(descriptor)
                os.unlink(partial, dir_fd=partials)  # on a full disk it would keep others from their space
                raise
        return descriptor

    def _kept(self, name: str, sha256: str) -> str:
        """A shard's name in the cache. Its content is part of it: one that is prepared anew has often the old size."""
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise UserError(f"{masked(self.location)}: the manifest's checksum of {name} is not a SHA-256")
        return f"{sha256[:16]}-{name}"


def _identity(descriptor: int, sha256: str) -> bytes:
    """What changes with every write to a file, and if another one takes its place."""
    found = os.fstat(descriptor)
    return f"{sha256} {found.st_size} {found.st_ino} {found.st_mtime_ns} {found.st_ctime_ns}\n".encode()


def _write_stamp(kept: str, stamps: int, identity: bytes) -> None:
    with open(new_file(kept, stamps), "wb") as file:
        file.write(identity)


def _digest(descriptor: int) -> str:
    with open(descriptor, "rb", closefd=False) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
