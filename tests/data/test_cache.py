"""The cache is one user's: what others could have put there or changed is refused, and what has changed is noticed."""

import fcntl
import os
import stat
from dataclasses import replace

import pytest

from dsmemvp.data.manifest import open_manifest, read_manifest
from dsmemvp.data.sample import EncodedSample
from dsmemvp.data.stream import read_all
from dsmemvp.errors import UserError

TAR, INDEX = "000000.tar", "000000.tar.index"
ROOMS = ["lists", "shards", "stamps", "locks", "partial"]


def members(manifest):
    return [entry.members for entry in read_all(manifest) if isinstance(entry, EncodedSample)]


def read(server, cache):
    return members(open_manifest(server.location, cache))


def refused(server, cache, path, why: str) -> None:
    with pytest.raises(UserError) as caught:
        read(server, cache)
    message = str(caught.value)
    assert message.startswith("data.cache: ") and str(path) in message and why in message and "\n" not in message


@pytest.fixture
def victim(tmp_path):
    """A file of the user's outside the cache, which must stay as it is."""
    path = tmp_path / "victim"
    path.write_text("mine")
    yield path
    assert path.read_text() == "mine"


@pytest.fixture
def filled(server, cache):
    """The cache, with everything in it."""
    read(server, cache)
    return cache.folder


def found(folder, room, name):
    (path,) = (folder / room).rglob(f"*{name}")
    return path


def test_nobody_else_may_write_what_is_made_or_look_into_it(server, cache):
    before = os.umask(0)
    try:
        read(server, cache)
    finally:
        os.umask(before)
    assert {path.name for path in cache.folder.iterdir()} == set(ROOMS)
    for path in (cache.folder, *cache.folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_a_folder_that_others_can_write_is_refused(server, cache, filled, room):
    found(filled, "shards", TAR).unlink()  # partial/ is only needed where something is fetched
    for mode in (0o770, 0o702, 0o2775, 0o1777):
        (filled / room).chmod(mode)
        refused(server, cache, filled / room, "others may write")
    (filled / room).chmod(0o755)
    assert len(read(server, cache)) == 9


ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@ROOT
@pytest.mark.parametrize("room", ["", *ROOMS])
def test_another_user_s_folder_is_refused(server, cache, filled, room):
    found(filled, "shards", TAR).unlink()
    os.chown(filled / room, 12345, -1)
    refused(server, cache, filled / room, "belongs to another user; name a folder of your own")


@pytest.mark.parametrize("room", ROOMS)
def test_a_folder_that_is_a_link_is_refused(server, cache, tmp_path, victim, room):
    (tmp_path / "mine").mkdir()
    cache.folder.mkdir()
    (cache.folder / room).symlink_to(tmp_path / "mine")
    refused(server, cache, cache.folder / room, "is a symbolic link or a file")
    assert not list((tmp_path / "mine").iterdir())


def test_the_user_s_own_path_to_the_cache_may_be_a_link(server, there, cache, tmp_path):
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for folder in (tmp_path / "link", tmp_path / "link" / "more"):
        assert read(server, replace(cache, folder=folder)) == members(read_manifest(there))
    (tmp_path / "disk").chmod(0o777)
    refused(server, replace(cache, folder=tmp_path / "link"), tmp_path / "disk", "others may write")


@pytest.mark.parametrize(("room", "name"), [("lists", INDEX), ("shards", TAR), ("stamps", TAR), ("locks", TAR)])
def test_a_file_that_is_a_link_is_refused_and_not_followed(server, cache, filled, victim, room, name):
    path = found(filled, room, name)
    path.unlink()
    path.symlink_to(victim)
    refused(server, cache, path, "is a symbolic link; remove it")


@pytest.mark.parametrize("target", ["victim", "missing"])
def test_a_link_in_the_place_of_a_partial_file_is_not_followed(server, there, cache, filled, tmp_path, victim, target):
    shard = found(filled, "shards", TAR)
    (filled / "partial" / found(filled, "locks", TAR).name).symlink_to(tmp_path / target)
    shard.unlink()
    assert read(server, cache) == members(read_manifest(there))
    assert not (tmp_path / "missing").exists() and not found(filled, "shards", TAR).is_symlink()


def test_a_hard_link_in_the_place_of_a_partial_file_is_not_written_through(server, there, cache, filled, victim):
    os.link(victim, filled / "partial" / found(filled, "locks", TAR).name)
    found(filled, "shards", TAR).unlink()
    assert read(server, cache) == members(read_manifest(there))


@ROOT
@pytest.mark.parametrize(("room", "name"), [("lists", INDEX), ("shards", TAR), ("stamps", TAR), ("locks", TAR)])
def test_a_file_that_is_another_user_s_or_that_others_can_write_is_refused(server, cache, filled, room, name):
    path = found(filled, room, name)
    path.chmod(0o660)
    refused(server, cache, path, "others may write")
    path.chmod(0o644)
    os.chown(path, 12345, -1)
    refused(server, cache, path, "belongs to another user")


def test_a_named_pipe_in_the_place_of_a_shard_is_refused_and_not_waited_for(server, cache, filled):
    path = found(filled, "shards", TAR)
    path.unlink()
    os.mkfifo(path, 0o600)
    refused(server, cache, path, "is not a regular file")


@pytest.mark.parametrize("keeps_time", [False, True])
def test_a_shard_that_was_altered_is_fetched_again(server, there, cache, filled, keeps_time):
    path = found(filled, "shards", TAR)
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    if keeps_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read(server, cache) == members(read_manifest(there))
    assert server.asked[TAR] == 2 and path.read_bytes() == (there / TAR).read_bytes()


def test_another_file_in_a_shard_s_place_is_noticed(server, there, cache, filled, tmp_path):
    path = found(filled, "shards", TAR)
    other = tmp_path / "other"
    other.write_bytes(bytes(path.stat().st_size))
    times = path.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.rename(path)
    assert read(server, cache) == members(read_manifest(there))
    assert server.asked[TAR] == 2


def test_a_shard_without_a_stamp_is_compared_once_and_not_fetched(server, there, cache, filled):
    """As those of a cache that was copied, or made by an earlier version."""
    for path in (filled / "stamps").rglob("*.tar"):
        path.unlink()
    assert read(server, cache) == members(read_manifest(there))
    assert server.asked[TAR] == 1 and len(list((filled / "stamps").rglob("*.tar"))) == 3


def test_a_shard_that_is_as_it_was_is_not_read_for_its_checksum(server, cache, filled, monkeypatch):
    def digest(*_):
        raise AssertionError("read as a whole")

    monkeypatch.setattr("hashlib.file_digest", digest)
    assert len(read(server, cache)) == 9


def test_what_killed_processes_have_left_is_deleted_and_what_is_being_fetched_is_not(server, there, cache, filled):
    names = [found(filled, "locks", name).name for name in (TAR, "000001.tar", "000002.tar")]
    for name in names:
        (filled / "partial" / name).write_bytes(b"half")
    found(filled, "shards", TAR).unlink()
    with open(filled / "locks" / names[2]) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        os.close(open_manifest(server.location, cache).open(0))
    assert [path.name for path in (filled / "partial").iterdir()] == [names[2]]
    assert read(server, cache) == members(read_manifest(there))


def test_a_full_disk_is_told_as_it_is_and_leaves_nothing(server, cache, filled, monkeypatch):
    found(filled, "shards", TAR).unlink()
    monkeypatch.setattr("dsmemvp.data.remote.os.fsync", _full)
    with pytest.raises(OSError, match="No space"):
        read(server, cache)
    assert server.asked[TAR] == 2 and not list((filled / "partial").iterdir())


def _full(*_):
    raise OSError(28, "No space left on device")
