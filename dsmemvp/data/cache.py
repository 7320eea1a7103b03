"""The cache of remote shards on a local disk. It belongs to one user: nobody else can write or replace what is in it.

    CACHE/lists/ID/*.index          indexes; their checksum is compared whenever they are read
    CACHE/shards/ID/SHA256-*.tar    the shards; those not used for longest are deleted first
    CACHE/stamps/ID/SHA256-*.tar    which file each shard was when its checksum was compared; mtime: last use
    CACHE/locks/, CACHE/partial/    one download of a file at a time on a node, renamed when it is whole

Every folder and file is opened relative to the one it lies in, without following symbolic links, and what is open is
looked at: a path that is exchanged meanwhile leads nowhere. A shard that is deleted while another process reads it
stays readable there, as Unix has it.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dsmemvp.errors import UserError

_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | _SAFE


@dataclass(frozen=True)
class Cache:
    """Where remote shards may be kept, and what may be opened."""

    folder: Path
    limit: int
    """Bytes of shards kept, give or take those being downloaded."""
    pipes: bool
    """Whether `pipe:` locations, which run a shell command, are allowed."""
    timeout: float = 60.0
    """Seconds without a byte from a location."""

    @contextmanager
    def opened(self, *names: str) -> Iterator[int]:
        """Descriptor of a folder inside the cache; missing ones are made. Raises UserError if one of them is another
        user's or can be written by others."""
        shown = self.folder.resolve()  # the user's own path may hold links
        shown.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_folder(str(shown), None, shown)
        try:
            for name in names:
                shown = shown / name
                inside = _open_folder(name, descriptor, shown)
                os.close(descriptor)
                descriptor = inside
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def locked(self, name: str, wait: bool = True) -> Iterator[None]:
        """One process of the node at a time. Raises BlockingIOError if another one is in it and `wait` is False."""
        with self.opened("locks") as folder:
            descriptor = open_file(name, folder, self.folder / "locks" / name, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)

    def make_room(self, size: int) -> None:
        """Delete what killed processes have left half done; and the shards not used for longest, until `size` more
        bytes stay within the limit."""
        with self.opened("partial") as folder:
            for name in os.listdir(folder):
                with suppress(BlockingIOError, FileNotFoundError), self.locked(name, wait=False):
                    os.unlink(name, dir_fd=folder)
        with self.opened("shards") as shards, self.opened("stamps") as stamps:
            files = sorted(_files(shards, stamps))
            total = sum(bytes for _, bytes, _ in files)
            for _, bytes, path in files:
                if total <= max(0, self.limit - size):
                    break
                for folder in (shards, stamps):
                    with suppress(FileNotFoundError):  # another process is making room as well
                        os.unlink(path, dir_fd=folder)
                total -= bytes


def open_file(name: str, folder: int, shown: Path, flags: int = os.O_RDONLY) -> int:
    """Descriptor of a file in an open folder. Raises FileNotFoundError, or ValueError if it is a link, no regular file,
    another user's, or can be written by others."""
    try:
        # O_NONBLOCK: a named pipe must not be waited for
        descriptor = os.open(name, flags | _SAFE | os.O_NONBLOCK, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"data.cache: {shown} is a symbolic link; remove it") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"data.cache: {shown} is not a regular file; remove it")
        _check_owner(descriptor, shown)
    except ValueError:
        os.close(descriptor)
        raise
    return descriptor


def new_file(name: str, folder: int) -> int:
    """Descriptor of a new file in an open folder, in the place of what has this name there."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE, 0o600, dir_fd=folder)


def _open_folder(name: str, parent: int | None, shown: Path) -> int:
    try:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        descriptor = os.open(name, _FOLDER, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise UserError(f"data.cache: {shown} is a symbolic link or a file, not a folder; remove it") from None
        raise
    try:
        _check_owner(descriptor, shown)
    except ValueError:
        os.close(descriptor)
        raise
    return descriptor


def _check_owner(descriptor: int, shown: Path) -> None:
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid():
        raise UserError(f"data.cache: {shown} belongs to another user; name a folder of your own")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(f"data.cache: others may write {shown}; `chmod go-w` it, or name a folder of your own")


def _files(shards: int, stamps: int) -> Iterator[tuple[float, int, str]]:
    """(time of last use, bytes, path inside `shards`) of every shard."""
    for root, _, names, folder in os.fwalk(".", dir_fd=shards):
        for name in names:
            path = os.path.join(root, name)
            with suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                used = found.st_mtime
                with suppress(FileNotFoundError):
                    used = os.stat(path, dir_fd=stamps, follow_symlinks=False).st_mtime
                yield used, found.st_size, path
