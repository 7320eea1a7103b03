"""The manifest: what it refuses before a byte of a shard is read, always by file name."""

import hashlib
import json

import pytest
from making import good_shards

from dsmemvp.data.manifest import FILE, describe, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path):
    good_shards(tmp_path / "train", number=5, per_shard=3)
    return tmp_path / "train"


def change(folder, **changed):
    path = folder / FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def change_shard(folder, **changed):
    shards = json.loads((folder / FILE).read_text())["shards"]
    shards[1].update(changed)
    change(folder, shards=shards)


def test_a_written_manifest_reads_back(folder):
    manifest = read_manifest(folder)
    assert manifest.split == "train" and manifest.samples == 5
    assert [(s.name, s.samples) for s in manifest.shards] == [("000000.tar", 3), ("000001.tar", 2)]
    assert manifest.path(1) == folder / "000001.tar"
    before = (folder / FILE).read_bytes()
    write_manifest(manifest)
    assert (folder / FILE).read_bytes() == before


def test_the_manifest_is_the_documented_json(folder):
    content = json.loads((folder / FILE).read_text())
    shard = (folder / "000001.tar").read_bytes()
    assert content["schema"] == 1 and content["split"] == "train"
    digest = hashlib.sha256(shard).hexdigest()
    assert content["shards"][1] == {"name": "000001.tar", "samples": 2, "bytes": len(shard), "sha256": digest}


def test_describe_tells_size_and_checksum_of_a_file(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"abc")
    shard = describe(tmp_path / "x.tar", 7)
    assert (shard.name, shard.samples, shard.bytes) == ("x.tar", 7, 3)
    assert shard.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2's example


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset\.json does not exist; a folder of shards has one"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"\xff\xfe", b"[]", b"3", b"null", b'{"schema": 1}', b'{"schema": 1, "split": "s", "shards": 3}'],
)
def test_a_manifest_that_is_not_one_is_refused(folder, content):
    (folder / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"dataset\.json is not a manifest.*prepare the data again"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "changed", [{"samples": "3"}, {"samples": -1}, {"name": 5}, {"bytes": None}, {"colour": "red"}, {"samples": True}]
)
def test_a_shard_entry_of_wrong_types_is_refused(folder, changed):
    change_shard(folder, **changed)
    with pytest.raises(ValueError, match=r"dataset\.json is not a manifest"):
        read_manifest(folder)


def test_another_schema_is_refused_with_both_numbers(folder):
    change(folder, schema=2)
    with pytest.raises(ValueError, match=r"dataset\.json: schema 2, this version reads 1"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../000001.tar", "/etc/passwd", "sub/000001.tar"])
def test_a_shard_name_that_leaves_the_folder_is_refused(folder, name):
    (folder / "sub").mkdir()
    (folder / "sub" / "000001.tar").write_bytes((folder / "000001.tar").read_bytes())
    (folder.parent / "000001.tar").write_bytes((folder / "000001.tar").read_bytes())
    change_shard(folder, name=name)
    with pytest.raises(ValueError, match="leaves the folder") as caught:
        read_manifest(folder)
    assert repr(name) in str(caught.value)


def test_a_missing_shard_is_named(folder):
    (folder / "000001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"000001\.tar is in dataset\.json but does not exist"):
        read_manifest(folder)


def test_a_shard_of_another_size_is_named_with_both_sizes(folder):
    with (folder / "000001.tar").open("ab") as file:
        size = file.tell()
        file.write(b"\0" * 512)
    with pytest.raises(ValueError, match=rf"000001\.tar has {size + 512} bytes, dataset\.json says {size}"):
        read_manifest(folder)


def test_a_manifest_without_samples_is_refused(folder):
    change(folder, shards=[])
    with pytest.raises(ValueError, match=r"dataset\.json: no samples"):
        read_manifest(folder)
