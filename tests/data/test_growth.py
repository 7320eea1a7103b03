"""What is kept of the data stays small however large it is, and a file that lies about it is refused in one line."""

import hashlib
import json
import os
import pickle
import random
import signal
import struct
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import pytest
from making import good_rows, good_shards, manifest_of, picture, write_tar

from data_prep.shards import Row, write_shards
from dsmemvp.data.index import index_path, read_index
from dsmemvp.data.manifest import FILE, Manifest, check_files, open_manifest, read_manifest, write_manifest
from dsmemvp.data.order import FileOrder, Order, Source
from dsmemvp.data.remote import Cache
from dsmemvp.data.shard_table import Shard
from dsmemvp.data.stream import read_all, read_each
from dsmemvp.data_tools.index_folder import index_folder
from dsmemvp.errors import UserError

SHARDS, PER_SHARD = 40_000, 10_000
MIB = 2**20


@contextmanager
def memory():
    """Bytes held at the end, and the most in between."""
    found = {}
    tracemalloc.start()
    try:
        yield found
        found["held"], found["peak"] = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


@pytest.fixture
def in_time():
    """A file that is waited for fails the test instead of keeping it."""

    def over(*_):
        raise TimeoutError("still waiting after 20 s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def huge(tmp_path_factory) -> Manifest:
    """Of 400 M samples, whose shards are not there."""
    digests = [hashlib.sha256(bytes([number])).hexdigest() for number in range(100)]
    shards = [
        Shard(f"{number:06d}.tar", PER_SHARD, 10**9, digests[number % 100], digests[number % 99])
        for number in range(SHARDS)
    ]
    manifest = Manifest(tmp_path_factory.mktemp("huge"), "train", shards)
    write_manifest(manifest)
    return manifest


def test_400_million_samples_are_opened_without_looking_at_a_shard(huge):
    manifest = open_manifest(str(huge.folder), Cache(huge.folder, 0, False))
    assert manifest == huge and manifest.samples == SHARDS * PER_SHARD
    assert manifest.shards[39_999].name == "039999.tar" and manifest.fingerprint == huge.fingerprint
    with pytest.raises(UserError, match=r"000000\.tar is in dataset\.json but does not exist"):
        check_files(manifest)


def test_what_a_worker_is_sent_of_400_million_samples_is_small(huge):
    order = Order([Source(huge.counts)], 0, 16, 1024)
    sent = pickle.dumps(([huge], order))
    assert len(sent) < 5 * MIB
    with memory() as found:
        manifests, order = pickle.loads(sent)
        places = [order.batch(step) for step in (0, order.steps // 2, order.steps - 1)]
    assert {len(batch) for batch in places} == {1024} and manifests[0].samples == SHARDS * PER_SHARD
    assert found["held"] < 12 * MIB and found["peak"] < 24 * MIB


def test_the_list_of_an_evaluation_does_not_grow_with_its_samples(huge):
    places = FileOrder(huge.counts)
    assert len(places) == SHARDS * PER_SHARD and len(pickle.dumps(places)) < MIB
    assert places[123_456_789] == (0, 12_345, 6_789) and places[-1] == (0, 39_999, 9_999)
    assert places[9_999:10_001] == [(0, 0, 9_999), (0, 1, 0)]


def test_an_index_takes_less_than_a_hundred_bytes_per_sample(tmp_path):
    rows = (Row(f"{number:08d}", {"question": "Which?", "answer": "one"}, picture()) for number in range(2000))
    manifest = write_shards(rows, tmp_path, "train", per_shard=2000)
    assert index_path(tmp_path / "000000.tar").stat().st_size < 80 * 2000
    with memory() as found:
        index = read_index(manifest, 0)
    assert len(index) == 2000 and index[1999].key == "00001999"
    assert found["held"] < 100 * 2000 and found["peak"] < 300 * 2000


def test_looking_at_a_few_samples_starts_anywhere(tmp_path):
    manifests = [good_shards(tmp_path / "a", 5, per_shard=3), good_shards(tmp_path / "b", 4, per_shard=2)]
    for first in (0, 2, 3, 5, 8, 9):
        assert [entry.index for entry in read_each(manifests, first)] == list(range(first, 9))


def test_a_folder_of_the_schema_before_is_refused_and_indexed_anew_a_run_goes_on_in_it(tmp_path):
    write_shards(good_rows(7), tmp_path, "train", per_shard=3)
    shards = json.loads((tmp_path / FILE).read_text())["shards"]
    (tmp_path / FILE).write_text(json.dumps({"schema": 2, "split": "train", "shards": shards}))
    with pytest.raises(UserError, match=rf"schema 2, this version reads 3; run `dsmemvp index {tmp_path}`$"):
        read_manifest(tmp_path)
    index_folder(tmp_path, "", processes=1)
    known = [(shard["name"], shard["samples"], shard["sha256"]) for shard in shards]
    assert read_manifest(tmp_path).fingerprint == hashlib.sha256(json.dumps(known).encode()).hexdigest()


def set_shard(folder: Path, **changed) -> None:
    content = json.loads((folder / FILE).read_text())
    content["shards"][0].update(changed)
    (folder / FILE).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"samples": 10**9}, "bytes cannot hold 1000000000 samples"),
        ({"samples": 10**9, "bytes": 10**12}, "dataset.json says 1000000000000"),
        ({"samples": 2**63, "bytes": 2**80}, "cannot hold"),
        ({"sha256": ""}, "without checksums"),
        ({"index_sha256": ""}, "without checksums"),
        ({"sha256": "A" * 64}, "without checksums"),
        ({"name": "a\0b.tar"}, "is not a usable name of a file"),
        ({"name": "\ud800.tar"}, "is not a usable name of a file"),
    ],
)
def test_a_manifest_that_lies_about_a_shard_is_refused(tmp_path, changed, why):
    good_shards(tmp_path)
    set_shard(tmp_path, **changed)
    with pytest.raises(UserError) as caught:
        read_manifest(tmp_path)
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_more_samples_than_the_index_holds_are_refused(tmp_path):
    good_shards(tmp_path)
    set_shard(tmp_path, samples=4)
    with pytest.raises(UserError, match=r"000000\.tar\.index holds 3 samples, the manifest says 4"):
        list(read_all(read_manifest(tmp_path)))


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["000000.tar", "000000.tar.index", FILE])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path, in_time, name):
    manifest = good_shards(tmp_path)
    pipe(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}.* not a regular file"):
        if name != FILE:
            list(read_all(manifest))
        read_manifest(tmp_path)
    if name != FILE:
        (tmp_path / FILE).unlink()
    if name == "000000.tar":
        with pytest.raises(UserError, match=r"000000\.tar is not a regular file"):
            index_folder(tmp_path, "", processes=1)


def mutations(content: bytes, chance: random.Random):
    """An index spoiled in 300 ways: bits, whole numbers, ends, and pieces out of place."""
    for _ in range(120):
        spoiled = bytearray(content)
        spoiled[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        yield bytes(spoiled)
    for at in range(16, len(content) - 8, 4):
        yield (
            content[:at]
            + struct.pack("<Q", chance.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
            + content[at + 8 :]
        )
    for _ in range(60):
        yield content[: chance.randrange(len(content))]
        yield content + chance.randbytes(chance.randrange(1, 40))
        start, end = sorted(chance.randrange(len(content)) for _ in range(2))
        yield content[:start] + content[start:end][::-1] + content[end:]
    yield from (b"", b"[]\n", b"[[[", b"\0" * len(content), content * 2, content[:16] + b"\xff" * (len(content) - 16))


def test_a_malformed_index_with_the_right_checksum_is_told_in_one_line(tmp_path):
    members = [(f"s{number}.{ending}", b"{}") for number in range(4) for ending in ("json", "png")]
    path = write_tar(tmp_path / "x.tar", [*members, ("../out.json", b"{}"), ("twice.json", b"{}"), ("twice.json", b"")])
    manifest_of(path)
    content, refused, read = index_path(path).read_bytes(), 0, 0
    for spoiled in mutations(content, random.Random(0)):
        index_path(path).write_bytes(spoiled)
        set_shard(tmp_path, index_sha256=hashlib.sha256(spoiled).hexdigest())
        try:
            entries = list(read_all(read_manifest(tmp_path)))
        except ValueError as error:
            assert str(error).startswith(f"{index_path(path)} ") and "\n" not in str(error), error
            assert str(error).endswith(f"run `dsmemvp index {tmp_path}`")
            refused += 1
        else:  # a key, a checksum or a length is another: the samples are the same ones, or told to be bad
            assert [entry.index for entry in entries] == list(range(6))
            read += 1
    assert refused > 200 and read > 20
