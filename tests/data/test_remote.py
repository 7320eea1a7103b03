"""Shards over HTTP: read as if they were local, taken over only whole, and kept below the cache's limit."""

import multiprocessing
import os
from dataclasses import replace

import pytest
from making import good_rows, good_shards, picture
from serving import serve

from data_prep.shards import write_shards
from dsmemvp.data.location import is_remote
from dsmemvp.data.manifest import FILE, open_manifest, read_manifest
from dsmemvp.data.remote import Remote
from dsmemvp.data.sample import EncodedSample
from dsmemvp.data.stream import read_all
from dsmemvp.errors import UserError


def contents(manifest):
    entries = list(read_all(manifest))
    assert all(isinstance(entry, EncodedSample) for entry in entries)
    return [(entry.index, entry.where.rpartition(" ")[2], entry.members) for entry in entries]


def use(manifest, shard) -> None:
    os.close(manifest.open(shard))


def kept(cache) -> list[str]:
    """The shards in the cache; names of the original files."""
    return sorted(path.name.rpartition("-")[2] for path in (cache.folder / "shards").rglob("*") if path.is_file())


def age(cache) -> None:
    """As if all that is there had been used an hour earlier."""
    for path in cache.folder.rglob("*.tar"):
        used = path.stat().st_mtime - 3600
        os.utime(path, (used, used))


def test_a_location_is_remote_by_its_form():
    assert [is_remote(x) for x in ("http://a/b", "gs://a", "pipe:cat {name}")] == [True] * 3
    assert [is_remote(x) for x in ("data/train", "/data/train", "C:train", "pipe/train")] == [False] * 4


def test_remote_shards_read_as_local_ones(server, there, cache):
    local, remote = read_manifest(there), open_manifest(server.location, cache)
    assert contents(remote) == contents(local)
    assert remote.fingerprint == local.fingerprint and remote.location == server.location
    assert remote.split == "train" and remote.counts == (3, 3, 3)
    assert set(server.asked) == {FILE, *(f"00000{i}.tar{more}" for i in range(3) for more in ("", ".index"))}


def test_an_ending_slash_changes_nothing(server, there, cache):
    assert contents(open_manifest(server.location + "/", cache)) == contents(read_manifest(there))


def test_opening_fetches_the_manifest_alone(server, cache):
    open_manifest(server.location, cache)
    assert server.asked == {FILE: 1} and kept(cache) == []


def test_a_second_start_fetches_the_manifest_anew_and_nothing_else(server, cache):
    first = contents(open_manifest(server.location, cache))
    server.asked.clear()
    assert contents(open_manifest(server.location, cache)) == first
    assert server.asked == {FILE: 1}


def test_data_prepared_anew_under_the_same_names_and_sizes_is_not_taken_from_the_cache(server, there, cache):
    before = contents(open_manifest(server.location, cache))
    sizes = [shard.bytes for shard in read_manifest(there).shards]
    rows = [replace(row, image=picture(colour=(1, 2, 3)) if row.image else None) for row in good_rows(9)]
    write_shards(rows, there, "train", per_shard=3)
    assert [shard.bytes for shard in read_manifest(there).shards] == sizes
    after = contents(open_manifest(server.location, cache))
    assert after == contents(read_manifest(there)) and after != before


def test_two_locations_do_not_share_a_cache_entry(server, tmp_path, cache):
    good_shards(tmp_path / "other", number=4, per_shard=3)
    with serve(tmp_path / "other") as other:
        manifests = [open_manifest(location, cache) for location in (server.location, other.location)]
        assert [len(contents(manifest)) for manifest in manifests] == [9, 4]
    assert len(kept(cache)) == 5


def test_the_cache_stays_below_its_limit(server, there, cache):
    largest = max(shard.bytes for shard in read_manifest(there).shards)
    small = replace(cache, limit=2 * largest + 100)
    manifest = open_manifest(server.location, small)
    for shard in (0, 1, 2, 0, 1):
        use(manifest, shard)
        files = [path for path in (cache.folder / "shards").rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= small.limit and len(files) <= 2
        assert len(list((cache.folder / "stamps").rglob("*.tar"))) == len(files)
    assert list((cache.folder / "partial").iterdir()) == []
    assert contents(manifest) == contents(read_manifest(there))


def test_the_shard_not_used_for_longest_goes_first(server, there, cache):
    small = replace(cache, limit=2 * read_manifest(there).shards[0].bytes + 100)
    manifest = open_manifest(server.location, small)
    for shard in (0, 1, 0, 2):
        age(cache)
        use(manifest, shard)
    assert kept(cache) == ["000000.tar", "000002.tar"]
    assert server.asked["000000.tar"] == 1


def test_a_shard_bigger_than_the_whole_limit_is_still_fetched_one_at_a_time(server, there, cache):
    manifest = open_manifest(server.location, replace(cache, limit=1))
    assert contents(manifest) == contents(read_manifest(there))
    assert kept(cache) == ["000002.tar"]


def test_a_cached_shard_of_another_size_is_fetched_again(server, there, cache):
    manifest = open_manifest(server.location, cache)
    use(manifest, 0)
    os.truncate(manifest.path(0), 100)
    assert contents(manifest) == contents(read_manifest(there))
    assert server.asked["000000.tar"] == 2


def test_a_changed_index_in_the_cache_is_fetched_again(server, there, cache):
    contents(open_manifest(server.location, cache))
    (path,) = (cache.folder / "lists").rglob("000001.tar.index")
    path.write_bytes(b"[]")
    assert contents(open_manifest(server.location, cache)) == contents(read_manifest(there))


@pytest.mark.parametrize("name", ["000001.tar", "000001.tar.index"])
def test_what_comes_with_a_wrong_checksum_is_refused_after_all_attempts_and_not_kept(server, cache, name):
    server.change = lambda asked, content: content[:-1] + b"!" if asked == name else content
    manifest = open_manifest(server.location, cache)
    with pytest.raises(UserError) as caught:
        contents(manifest)
    message = str(caught.value)
    assert message == f"{server.location}: {name} cannot be fetched (its checksum is not the manifest's; 5 attempts)"
    assert server.asked[name] == 5
    assert not [p for p in cache.folder.rglob(f"*{name}") if p.parent.name != "locks"]


def test_a_transfer_that_fails_at_first_is_tried_again(server, there, cache):
    def change(name, content):
        return content[:100] if name == "000001.tar" and server.asked[name] < 3 else content

    server.change = change
    assert contents(open_manifest(server.location, cache)) == contents(read_manifest(there))
    assert server.asked["000001.tar"] == 3


def test_a_manifest_of_another_schema_is_refused_by_its_location(server, there, cache):
    (there / FILE).write_text('{"schema": 1}')
    with pytest.raises(UserError) as caught:
        open_manifest(server.location, cache)
    assert str(caught.value).startswith(f"{server.location}, dataset.json: schema 1, this version reads 3; ")
    assert "`dsmemvp index`" in str(caught.value) and str(cache.folder) not in str(caught.value)


def _fetch(manifest, barrier, sizes):
    barrier.wait()
    sizes.put(os.fstat(manifest.open(0)).st_size)


def test_processes_that_want_the_same_shard_at_once_download_it_once(server, there, cache):
    manifest = open_manifest(server.location, cache)
    server.wait = 0.3  # long enough that all ask while the first is at it
    start = multiprocessing.get_context("fork")
    barrier, sizes = start.Barrier(3), start.Queue()
    processes = [start.Process(target=_fetch, args=(manifest, barrier, sizes)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [sizes.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
    assert found == [read_manifest(there).shards[0].bytes] * 3
    assert server.asked["000000.tar"] == 1


def test_a_shard_deleted_from_the_cache_is_fetched_again(server, there, cache):
    manifest = open_manifest(server.location, cache)
    use(manifest, 1)
    manifest.path(1).unlink()
    assert contents(manifest) == contents(read_manifest(there))
    assert server.asked["000001.tar"] == 2


def _read_all(manifest, barrier, found):
    barrier.wait()
    found.put([contents(manifest) for _ in range(10)])


def test_processes_that_delete_one_another_s_shards_read_all_of_them(server, there, cache):
    manifest = open_manifest(server.location, replace(cache, limit=1))
    start = multiprocessing.get_context("fork")
    barrier, found = start.Barrier(2), start.Queue()
    processes = [start.Process(target=_read_all, args=(manifest, barrier, found)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [found.get(timeout=60) for _ in processes] == [[contents(read_manifest(there))] * 10] * 2
    for process in processes:
        process.join(30)
    assert server.asked["000000.tar"] > 2  # they were in one another's way


def test_reading_goes_on_where_the_shard_is_deleted_from_the_cache_meanwhile(server, there, cache):
    manifest = open_manifest(server.location, cache)
    entries = read_all(manifest)
    first = next(entries)
    for path in (cache.folder / "shards").rglob("*.tar"):
        path.unlink()
    assert [first.index, *(entry.index for entry in entries)] == list(range(9))


def test_a_shard_whose_room_another_process_takes_while_it_is_opened_is_read(server, cache, monkeypatch):
    manifest = open_manifest(server.location, cache)
    use(manifest, 0)
    stamped = Remote._stamped

    def and_then_make_room(remote, kept, stamps):
        stamp = stamped(remote, kept, stamps)
        replace(cache, limit=1).make_room(1)
        return stamp

    monkeypatch.setattr(Remote, "_stamped", and_then_make_room)
    use(manifest, 0)
    assert kept(cache) == []
