"""The manifest: what it refuses before a byte of a shard is read, always by file name."""

import hashlib
import json
from dataclasses import replace

import pytest
from making import good_shards, manifest_of, write_tar

from dsmemvp.data.manifest import FILE, Manifest, read_manifest, write_manifest
from dsmemvp.errors import UserError


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
    index = (folder / "000001.tar.index").read_bytes()
    assert content["schema"] == 3 and content["split"] == "train"
    assert content["shards"][1] == {
        "name": "000001.tar",
        "samples": 2,
        "bytes": len(shard),
        "sha256": hashlib.sha256(shard).hexdigest(),
        "index_sha256": hashlib.sha256(index).hexdigest(),
    }


def test_the_fingerprint_changes_with_what_the_order_depends_on_and_not_with_where_it_lies(folder, tmp_path):
    manifest = read_manifest(folder)
    known = [manifest.shards[0], manifest.shards[1]]
    assert Manifest(tmp_path, "other", manifest.shards).fingerprint == manifest.fingerprint
    others = [
        known[::-1],
        known[:1],
        [known[0], replace(known[1], samples=1)],
        [known[0], replace(known[1], sha256="0" * 64)],
        [known[0], replace(known[1], name="x.tar")],
    ]
    prints = {Manifest(folder, "train", tuple(shards)).fingerprint for shards in others}
    assert len(prints | {manifest.fingerprint}) == 6


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"dataset\.json does not exist; ") as caught:
        read_manifest(tmp_path)
    assert f"`dsmemvp index {tmp_path}`" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b"", b"\xff\xfe", b"[]", b"3", b"null", b"[" * 100_000),
        *(b'{"schema": 3}', b'{"schema": 3, "split": "s", "shards": 3}'),
    ],
    ids=lambda content: str(content[:20]),
)
def test_a_manifest_that_is_not_one_is_refused(folder, content):
    (folder / FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"dataset\.json is not a manifest") as caught:
        read_manifest(folder)
    assert str(caught.value).endswith(f"run `dsmemvp index {folder}`")


@pytest.mark.parametrize(
    "changed",
    [
        *({"samples": "3"}, {"samples": -1}, {"samples": True}, {"name": 5}, {"bytes": None}, {"bytes": -1}),
        *({"sha256": None}, {"index_sha256": 7}, {"colour": "red"}),
    ],
)
def test_a_shard_entry_of_wrong_types_is_refused(folder, changed):
    change_shard(folder, **changed)
    with pytest.raises(UserError, match=r"dataset\.json is not a manifest"):
        read_manifest(folder)


@pytest.mark.parametrize("schema", [1, 99])
def test_another_schema_is_refused_with_both_numbers(folder, schema):
    change(folder, schema=schema)
    with pytest.raises(UserError, match=rf"dataset\.json: schema {schema}, this version reads 3") as caught:
        read_manifest(folder)
    assert str(caught.value).endswith(f"run `dsmemvp index {folder}`")


def test_an_entry_of_the_first_schema_is_refused_though_the_number_is_right(folder):
    shards = json.loads((folder / FILE).read_text())["shards"]
    for shard in shards:
        del shard["index_sha256"]
    change(folder, shards=shards)
    with pytest.raises(UserError, match="index_sha256"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../000001.tar", "/etc/passwd", "sub/000001.tar", "..", ".", "", "./000001.tar"])
def test_a_shard_name_that_leaves_the_folder_is_refused(folder, name):
    (folder / "sub").mkdir()
    (folder / "sub" / "000001.tar").write_bytes((folder / "000001.tar").read_bytes())
    (folder.parent / "000001.tar").write_bytes((folder / "000001.tar").read_bytes())
    change_shard(folder, name=name)
    with pytest.raises(UserError, match="leaves the folder") as caught:
        read_manifest(folder)
    assert repr(name) in str(caught.value)


def test_a_missing_shard_is_named(folder):
    (folder / "000001.tar").unlink()
    with pytest.raises(UserError, match=r"000001\.tar is in dataset\.json but does not exist"):
        read_manifest(folder)


def test_a_shard_of_another_size_is_named_with_both_sizes(folder):
    with (folder / "000001.tar").open("ab") as file:
        size = file.tell()
        file.write(b"\0" * 512)
    with pytest.raises(UserError, match=rf"000001\.tar has {size + 512} bytes, dataset\.json says {size}") as caught:
        read_manifest(folder)
    assert f"`dsmemvp index {folder}`" in str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 2048])
def test_a_shard_that_was_cut_after_it_was_indexed_is_refused_before_a_run(folder, kept):
    path = folder / "000000.tar"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=rf"000000\.tar has {kept} bytes, dataset\.json says {size}"):
        read_manifest(folder)


def test_a_shard_listed_twice_is_refused(folder):
    change_shard(folder, name="000000.tar")
    with pytest.raises(UserError, match="a shard is listed twice"):
        read_manifest(folder)


def test_a_manifest_without_samples_is_refused(folder):
    change(folder, shards=[])
    with pytest.raises(UserError, match=r"dataset\.json: no samples"):
        read_manifest(folder)


def test_shards_without_a_sample_are_a_manifest_without_samples(tmp_path):
    manifest_of(write_tar(tmp_path / "x.tar", [("README", b"nothing here")]))
    with pytest.raises(UserError, match=r"dataset\.json: no samples"):
        read_manifest(tmp_path)
