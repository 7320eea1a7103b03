"""Writing shards: complete or without manifest, and the same bytes for the same rows."""

import hashlib
import json
import os
import tarfile
import time

import pytest
from making import fields, good_rows, picture

from data_prep.shards import Row, write_shards
from dsmemvp.data.manifest import FILE, read_manifest
from dsmemvp.data.sample import SampleError
from dsmemvp.data.stream import read_all
from dsmemvp.errors import UserError


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_rows_give_the_same_bytes_at_another_time_for_another_user(tmp_path, monkeypatch):
    write_shards(good_rows(7), tmp_path / "a", "train", per_shard=3)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    for name, value in (("USER", "somebody"), ("LOGNAME", "somebody"), ("TZ", "Asia/Tokyo")):
        monkeypatch.setenv(name, value)
    old = os.umask(0o077)
    try:
        write_shards(good_rows(7), tmp_path / "b", "train", per_shard=3)
    finally:
        os.umask(old)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    shards = {"000000.tar", "000001.tar", "000002.tar"}
    assert set(contents(tmp_path / "a")) == {*shards, *(f"{name}.index" for name in shards), FILE}


def test_members_lie_side_by_side_in_the_order_of_the_rows(tmp_path):
    write_shards(good_rows(3), tmp_path, "train")
    with tarfile.open(tmp_path / "000000.tar") as tar:
        assert tar.getnames() == ["s000.json", "s000.png", "s001.json", "s002.json", "s002.png"]
        assert tar.extractfile("s000.png").read() == picture(colour=(0, 0, 0))


def test_the_returned_manifest_is_the_written_one(tmp_path):
    manifest = write_shards(good_rows(7), tmp_path, "val", per_shard=3)
    assert manifest == read_manifest(tmp_path)
    assert [s.samples for s in manifest.shards] == [3, 3, 1] and manifest.split == "val"
    for shard in manifest.shards:
        index = (tmp_path / f"{shard.name}.index").read_bytes()
        assert shard.sha256 == hashlib.sha256((tmp_path / shard.name).read_bytes()).hexdigest()
        assert shard.index_sha256 == hashlib.sha256(index).hexdigest()


def test_what_was_written_reads_back_row_by_row(tmp_path):
    entries = list(read_all(write_shards(good_rows(7), tmp_path, "train", per_shard=3)))
    for row, entry in zip(good_rows(7), entries, strict=True):
        assert json.loads(entry.members.pop("json")) == row.fields
        assert entry.members == ({"png": row.image} if row.image else {})


def test_text_of_any_script_is_written_as_it_is(tmp_path):
    write_shards([Row("ключ", fields(question="漢字 ü 🙂?"))], tmp_path, "train")
    with tarfile.open(tmp_path / "000000.tar") as tar:
        content = tar.extractfile("ключ.json").read()
    assert json.loads(content)["question"] == "漢字 ü 🙂?" and "漢字".encode() in content


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "../a", "a\\b"])
def test_a_key_that_tar_readers_would_split_is_refused(tmp_path, key):
    with pytest.raises(SampleError, match="key must not be empty or contain"):
        write_shards([Row(key, fields())], tmp_path, "train")


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (Row("k7", fields(answer=9)), "k7: answer 9 is not the index"),
        (Row("k7", fields(question="")), "k7: has no question"),
        (Row("k7", fields(), b"x", "ppm"), "k7: image ending 'ppm' is not one of"),
    ],
)
def test_a_row_that_could_not_be_read_is_not_written_and_leaves_no_manifest(tmp_path, row, part):
    write_shards(good_rows(2), tmp_path, "train")
    with pytest.raises(SampleError) as caught:
        write_shards([*good_rows(3), row], tmp_path, "train", per_shard=2)
    assert str(caught.value).startswith(part)
    assert not (tmp_path / FILE).exists() and not list(tmp_path.glob("*partial*"))


def test_a_disk_that_fills_up_leaves_no_half_shard_and_no_manifest(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_prep.shards.flush", full)
    with pytest.raises(OSError, match="No space left"):
        write_shards(good_rows(2), tmp_path, "train")
    assert list(tmp_path.iterdir()) == []


def test_an_upper_case_ending_is_written_in_lower_case(tmp_path):
    write_shards([Row("k", fields(), picture("JPEG"), "JPG")], tmp_path, "train")
    with tarfile.open(tmp_path / "000000.tar") as tar:
        assert sorted(tar.getnames()) == ["k.jpg", "k.json"]


@pytest.mark.parametrize("per_shard", [0, -1])
def test_a_shard_of_no_samples_is_refused_and_nothing_is_lost(tmp_path, per_shard):
    write_shards(good_rows(2), tmp_path, "train")
    with pytest.raises(UserError, match="samples per shard"):
        write_shards(good_rows(2), tmp_path, "train", per_shard)
    assert read_manifest(tmp_path).samples == 2
