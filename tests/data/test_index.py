"""The index points at the right bytes, for tarfile and webdataset on the same file, and its file is as documented."""

import hashlib
import io
import itertools
import random
import struct
import sys
import tarfile
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset
from making import as_json, fields, good_shards, manifest_of, picture, write_tar

from dsmemvp.data.index import index_path, index_shard, read_index
from dsmemvp.data.manifest import FILE, read_manifest
from dsmemvp.data.sample import IMAGE_ENDINGS
from dsmemvp.data.stream import read_all
from dsmemvp.data.tar import scan
from dsmemvp.errors import UserError

LONG = "long-" * 40
"""200 letters: more than the 100 of a plain tar header."""


def odd_tar(path, format):
    """Every oddity a good shard may have."""
    with tarfile.open(path, "w", format=format) as tar:

        def add(name, content=b"", **more):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in more.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))

        add("folder", type=tarfile.DIRTYPE)
        add("folder.json", type=tarfile.DIRTYPE)
        add("__meta__", b"not a sample")
        add("__info__.json", b"a sample all the same: the name does not end in underscores")
        add("__lists__/a.json", b"not a sample either")
        add("plain.json", as_json(fields(1)))
        add("plain.PNG", picture(), uid=0o7777777, gid=0o7777777, mtime=2**33 - 1, mode=0)
        add("README", b"no ending, no sample")
        add("folder/deep/inside.json", as_json(fields(2)), uname="böse", gname="x" * 31)
        add("folder/deep/inside.Jpeg", picture("JPEG"))
        add("./here.json", as_json(fields(3)))
        add("link.json", type=tarfile.SYMTYPE, linkname="plain.json")
        add("hard.json", type=tarfile.LNKTYPE, linkname="plain.json")
        add("ключ 漢.json", as_json(fields(4)))
        add("two.seg.png", picture(size=(3, 3)))
        add("two.json", as_json(fields(5)))
        add("empty.json", b"")
        add("old.json", as_json(fields(6)), type=tarfile.AREGTYPE)
        add("full.json", b"x" * 512)  # no padding
        if format != tarfile.USTAR_FORMAT:
            add(f"{LONG}/{LONG}.json", as_json(fields(7)))
            add(f"{LONG}/{LONG}.png", picture(colour=(9, 9, 9)))
    return path


FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


@pytest.mark.parametrize("format", FORMATS, ids=["ustar", "gnu", "pax"])
def test_every_member_lies_where_tarfile_finds_it(tmp_path, format):
    path = odd_tar(tmp_path / "x.tar", format)
    content = path.read_bytes()
    entries = scan(path, Counter()).entries
    assert len(entries) == (9 if format == tarfile.USTAR_FORMAT else 10)
    with tarfile.open(path) as tar:
        lower = {m.name.lower(): tar.extractfile(m).read() for m in tar.getmembers() if m.isreg()}
    for entry in entries:
        found = [content[m.offset : m.offset + m.size] for m in entry.members]
        assert found == [lower[f"{entry.key}.{m.ending}".lower()] for m in entry.members]
        assert entry.crc32 == zlib.crc32(b"".join(found)) and not entry.problem


@pytest.mark.parametrize("format", FORMATS, ids=["ustar", "gnu", "pax"])
def test_samples_are_those_of_webdataset_s_own_reader(tmp_path, format):
    path = odd_tar(tmp_path / "x.tar", format)
    stock = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
    ours = list(read_all(manifest_of(path)))
    assert [f"{path}, sample {sample['__key__']}" for sample in stock] == [entry.where for entry in ours]
    for theirs, entry in zip(stock, ours, strict=True):
        wanted = {e: c for e, c in theirs.items() if e == "json" or e in IMAGE_ENDINGS}
        assert entry.members == wanted
    assert {"json", "jpeg"} == ours[2].members.keys()


def test_a_key_that_comes_again_later_is_another_sample_as_for_webdataset(tmp_path):
    members = [("a.json", as_json(fields(1))), ("b.json", as_json(fields(2))), ("a.json", as_json(fields(3)))]
    path = write_tar(tmp_path / "x.tar", [*members, ("a.png", b"p")])
    stock = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
    entries = scan(path, Counter()).entries
    assert [e.key for e in entries] == [s["__key__"] for s in stock] == ["a", "b", "a"]
    assert [[m.ending for m in e.members] for e in entries] == [["json"], ["json"], ["json", "png"]]


def test_a_sample_whose_members_do_not_stand_together_is_named_and_not_taken_for_two(tmp_path):
    """As `tar` packs a folder without --sort=name."""
    members = [("a.json", as_json(fields(1))), ("b.json", as_json(fields(2))), ("b.png", b"p"), ("a.png", b"p")]
    entries = scan(write_tar(tmp_path / "x.tar", members), Counter()).entries
    assert [(entry.key, "tar --sort=name" in entry.problem) for entry in entries] == [("a", 1), ("b", 0), ("a", 1)]


def test_a_member_that_stands_twice_spoils_only_its_sample(tmp_path):
    members = [("a.json", b"{}"), ("b.json", b"{}"), ("b.JSON", b"{}"), ("b.png", b"x"), ("c.json", b"{}")]
    entries = scan(write_tar(tmp_path / "x.tar", members), Counter()).entries
    assert [(e.key, e.problem) for e in entries] == [("a", ""), ("b", "its member json stands twice"), ("c", "")]


@pytest.mark.parametrize("name", ["../x.json", "/etc/x.json", "a/../../x.json", "a/../x.json"])
def test_a_name_that_climbs_out_spoils_only_its_sample(tmp_path, name):
    entries = scan(
        write_tar(tmp_path / "x.tar", [("a.json", b"{}"), (name, b"{}"), ("b.json", b"{}")]), Counter()
    ).entries
    assert [bool(e.problem) for e in entries] == [False, True, False]
    assert entries[1].problem == "its name leads out of the folder" and entries[1].members == ()


def test_the_length_is_the_characters_a_model_sees(tmp_path):
    rows = [
        fields(0, question="four", context="six...", choices=["one", "two"], caption="not counted"),
        {"question": "four", "answer": "seven.."},
        {"question": "four", "choices": [7, None, "x"], "answer": 0, "context": 3},
        ["no object"],
        {"caption": " a cat. ", "url": "https://..."},
    ]
    members = [(f"s{i}.json", as_json(row)) for i, row in enumerate(rows)]
    members += [("t.txt", "Größe".encode()), ("u.json", b"\xff"), ("v.png", b"x"), ("w.json", b"[" * 100_000)]
    entries = scan(write_tar(tmp_path / "x.tar", members), Counter()).entries
    described = len("Describe the image.")
    assert [e.length for e in entries] == [16, 11, 5, 0, described + 6, described + 5, 0, 0, 0]


def test_only_a_text_and_images_are_pointed_at_and_the_rest_is_counted(tmp_path):
    members = [
        ("a.cls", b"3"),
        ("a.json", b"{}"),
        ("a.txt", b"x"),
        ("a.seg.png", b"x"),
        ("b.txt", b"x"),
        ("b.cls", b""),
    ]
    ignored: Counter[str] = Counter()
    path = write_tar(tmp_path / "x.tar", members)
    index_shard(path, ignored)
    assert [[m.ending for m in e.members] for e in scan(path, Counter()).entries] == [["json"], ["txt"]]
    assert ignored == {"cls": 2, "txt": 1, "seg.png": 1}


def test_the_index_is_the_documented_file(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.json", b"{}"), ("a.png", b"xyz"), ("../b.json", b"{}")])
    manifest_of(path)
    problem = b"its name leads out of the folder"
    assert (tmp_path / "x.tar.index").read_bytes() == b"".join(
        [
            b"dsmemvp index 3\n",
            struct.pack("<5Q", 2, 2, 1, len("a../b"), len(problem)),
            struct.pack("<2Q", 512, 1536),  # offsets of members
            struct.pack("<2Q", 2, 3),  # their bytes
            struct.pack("<2I", 2, 2),  # where each sample's members end
            struct.pack("<2I", zlib.crc32(b"{}xyz"), 0),
            struct.pack("<2I", 0, 0),  # characters of text
            struct.pack("<2I", 1, 5),  # where each key ends
            struct.pack("<I", 1),  # samples with a problem
            struct.pack("<I", len(problem)),  # where each text of a problem ends
            bytes([0, 2]),  # json, png
            b"a../b",
            problem,
        ]
    )


def test_an_index_reads_back_as_it_was_made(tmp_path):
    path = odd_tar(tmp_path / "x.tar", tarfile.PAX_FORMAT)
    assert list(read_index(manifest_of(path), 0)) == scan(path, Counter()).entries


def _bytes_read() -> int:
    """By this process, whatever function it called for it."""
    return int(Path("/proc/self/io").read_text().partition("rchar: ")[2].partition("\n")[0])


def test_a_shard_is_opened_and_read_once(tmp_path):
    noise = random.Random(0).randbytes(3 << 20)
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.txt", "a.json", "a.png", f"{LONG}.npy", "b.png", "b.txt", "README"):
            info = tarfile.TarInfo(name)
            info.size = len(noise) - len(name)  # the end of a member is not the end of a block
            tar.addfile(info, io.BytesIO(noise))
    opened: list[str] = []
    watching = [True]  # an audit hook stays for good
    sys.addaudithook(
        lambda event, given: opened.append(str(given[0])) if watching and event == "open" and given[0] else None
    )
    before = _bytes_read()
    shard = index_shard(path)
    read = _bytes_read() - before
    watching.clear()
    assert opened.count(str(path)) == 1
    assert shard.bytes <= read < shard.bytes + (1 << 20)
    assert shard.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and shard.bytes == path.stat().st_size


@pytest.mark.parametrize("order", itertools.permutations(["json", "png", "txt"]), ids="-".join)
def test_the_checksum_is_of_the_members_that_are_read_in_any_order(tmp_path, order):
    contents = {"json": as_json(fields(1)), "png": picture(), "txt": b"never read beside the json"}
    (entry,) = scan(write_tar(tmp_path / "x.tar", [(f"a.{e}", contents[e]) for e in order]), Counter()).entries
    read = [ending for ending in order if ending != "txt"]
    assert [member.ending for member in entry.members] == read
    assert entry.crc32 == zlib.crc32(b"".join(contents[ending] for ending in read))


def test_a_name_that_is_not_unicode_survives_the_index(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        info = tarfile.TarInfo("caf\xe9.json")
        tar.addfile(info)
    entries = read_index(manifest_of(tmp_path / "x.tar"), 0)
    assert [e.key for e in entries] == ["caf\udce9"]
    (entry,) = read_all(read_manifest(tmp_path))
    assert entry.where.endswith("caf\udce9")


def test_the_same_shard_gives_the_same_index_and_leaves_no_other_file(tmp_path):
    path = odd_tar(tmp_path / "x.tar", tarfile.PAX_FORMAT)
    first, content = index_shard(path), index_path(path).read_bytes()
    assert index_shard(path) == first and index_path(path).read_bytes() == content
    assert {p.name for p in tmp_path.iterdir()} == {"x.tar", "x.tar.index"}


def test_a_missing_index_is_named_with_what_makes_it(tmp_path):
    manifest = good_shards(tmp_path)
    index_path(tmp_path / "000001.tar").unlink()
    with pytest.raises(UserError, match=r"000001\.tar\.index does not exist") as caught:
        read_index(manifest, 1)
    assert str(caught.value).endswith(f"run `dsmemvp index {tmp_path}`")


def another_shard_s(tmp_path):
    index_path(tmp_path / "000001.tar").write_bytes(index_path(tmp_path / "000000.tar").read_bytes())


def changed(tmp_path):
    path = index_path(tmp_path / "000001.tar")
    path.write_bytes(path.read_bytes().replace(b"s003", b"s004"))


def emptied(tmp_path):
    index_path(tmp_path / "000001.tar").write_bytes(b"")


@pytest.mark.parametrize("damage", [another_shard_s, changed, emptied])
def test_an_index_that_is_not_the_manifest_s_is_refused(tmp_path, damage):
    manifest = good_shards(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=r"000001\.tar\.index is not the index that the manifest") as caught:
        read_index(manifest, 1)
    assert str(caught.value).endswith(f"run `dsmemvp index {tmp_path}`")


def test_a_manifest_that_counts_other_than_its_index_is_refused(tmp_path):
    manifest = good_shards(tmp_path)
    more = replace(manifest, shards=(replace(manifest.shards[0], samples=4), manifest.shards[1]))
    with pytest.raises(UserError, match=r"000000\.tar\.index holds 3 samples, the manifest says 4") as caught:
        read_index(more, 0)
    assert str(caught.value).endswith(f"run `dsmemvp index {tmp_path}`")


def test_an_index_lies_beside_its_shard_and_is_in_the_manifest(tmp_path):
    good_shards(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {FILE, "000000.tar", "000001.tar", "000000.tar.index", "000001.tar.index"}
