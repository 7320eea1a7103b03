"""Reading shards: the samples asked for, whole, and damage kept to the samples it hits."""

import io
import os
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset
from making import as_json, fields, good_rows, good_shards, manifest_of, picture, write_tar

from dsmemvp.data.index import index_path
from dsmemvp.data.manifest import read_manifest
from dsmemvp.data.order import Place
from dsmemvp.data.sample import BadSample, EncodedSample, SampleError, read_sample
from dsmemvp.data.stream import Reader, first_numbers, read_all
from dsmemvp.errors import UserError


def members(*numbers) -> Iterator[tuple[str, bytes]]:
    """Tar members of good samples: json, and a png for every second one."""
    for i in numbers:
        yield f"s{i:03d}.json", as_json(fields(i))
        if i % 2 == 0:
            yield f"s{i:03d}.png", picture(colour=(i, 0, 0))


def is_bad(entry, *parts) -> bool:
    assert isinstance(entry, BadSample)
    for part in parts:
        assert part in str(entry.error), entry.error
    return True


def questions(entries) -> list[str | None]:
    """None for a bad sample."""
    return [None if isinstance(e, BadSample) else read_sample(e).question for e in entries]


def asked(*numbers) -> list[str]:
    return [fields(i)["question"] for i in numbers]


def test_good_shards_read_back_as_written(tmp_path):
    entries = list(read_all(good_shards(tmp_path / "train", number=7, per_shard=3)))
    assert [e.index for e in entries] == list(range(7))
    for row, entry in zip(good_rows(7), entries, strict=True):
        assert isinstance(entry, EncodedSample)
        wanted = {"json": as_json(row.fields)} | ({"png": row.image} if row.image else {})
        assert entry.members == wanted


def test_samples_are_found_wherever_they_lie_and_however_often_they_are_asked_for(tmp_path):
    reader = Reader([good_shards(tmp_path, number=8, per_shard=3)], indexes=1)
    places = [Place(0, 2, 1), Place(0, 0, 2), Place(0, 2, 0), Place(0, 0, 2), Place(0, 1, 1)]
    found = reader.read(places)
    assert found.keys() == set(places)
    assert questions(found[place] for place in places) == asked(7, 2, 6, 2, 4)
    assert [found[place].where for place in places[:2]] == [
        f"{tmp_path / '000002.tar'}, sample s007",
        f"{tmp_path / '000000.tar'}, sample s002",
    ]


def test_running_numbers_go_on_from_one_data_set_to_the_next(tmp_path):
    manifests = [good_shards(tmp_path / "a", 5, per_shard=3), good_shards(tmp_path / "b", 4, per_shard=2)]
    assert [list(firsts) for firsts in first_numbers(manifests)] == [[0, 3], [5, 7]]
    found = Reader(manifests, indexes=2).read([Place(1, 1, 1), Place(0, 1, 0)])
    assert {place: entry.index for place, entry in found.items()} == {(0, 1, 0): 3, (1, 1, 1): 8}
    assert found[Place(1, 1, 1)].where.startswith(str(tmp_path / "b"))


def test_a_reader_holds_no_more_indexes_than_it_may_and_the_last_used(tmp_path, monkeypatch):
    manifest, read = good_shards(tmp_path, number=6, per_shard=2), []
    real = __import__("dsmemvp.data.stream", fromlist=["read_index"]).read_index
    monkeypatch.setattr("dsmemvp.data.stream.read_index", lambda m, shard: read.append(shard) or real(m, shard))
    reader = Reader([manifest], indexes=2)
    for shard in (0, 1, 0, 1, 0, 2, 0, 1):
        assert reader.entry(Place(0, shard, 1)).key == f"s{2 * shard + 1:03d}"
    assert read == [0, 1, 2, 1]


def test_only_the_wanted_bytes_are_read_and_forwards(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar", list(members(*range(6))))
    reader, read, real = Reader([manifest_of(path)], indexes=1), [], os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: read.append((at, size)) or real(file, size, at))
    reader.read([Place(0, 0, 4), Place(0, 0, 1)])
    with tarfile.open(path) as tar:
        wanted = [tar.getmember(name) for name in ("s001.json", "s004.json", "s004.png")]
    assert read == [(member.offset_data, member.size) for member in wanted]


def test_stock_webdataset_reads_our_shards(tmp_path):
    good_shards(tmp_path / "train", number=5, per_shard=5)
    url = str(tmp_path / "train" / "000000.tar")
    stock = list(webdataset.WebDataset(url, shardshuffle=False, empty_check=False).decode("pil"))
    assert [s["__key__"] for s in stock] == [f"s{i:03d}" for i in range(5)]
    assert [s["json"]["question"] for s in stock] == [fields(i)["question"] for i in range(5)]
    assert [("png" in s) for s in stock] == [True, False, True, False, True]
    assert stock[4]["png"].size == (6, 4) and stock[4]["png"].getpixel((0, 0)) == (4, 0, 0)


def test_we_read_shards_that_stock_webdataset_wrote(tmp_path):
    path = tmp_path / "x.tar"
    with webdataset.TarWriter(str(path)) as tar:
        tar.write({"__key__": "a", "json": fields(1), "JPG": picture("JPEG")})
        tar.write({"__key__": "part/b", "json": fields(2), "txt": "more"})
    one, two = read_all(manifest_of(path))
    assert questions([one, two]) == asked(1, 2)
    assert one.members["jpg"] == picture("JPEG") and two.where == f"{path}, sample part/b"


def cut(path: Path, name: str, kept: int) -> None:
    """End the file after `kept` bytes of a member."""
    with tarfile.open(path) as tar:
        member = tar.getmember(name)
    os.truncate(path, member.offset_data + kept)


@pytest.mark.parametrize(
    ("name", "kept", "good"),
    [("s002.png", 5, [0, 1]), ("s002.json", 0, [0, 1]), ("s003.json", -512, [0, 1, 2]), ("s000.json", 1, [])],
)
def test_where_a_file_is_cut_while_a_run_reads_the_samples_before_are_good(tmp_path, name, kept, good):
    path = write_tar(tmp_path / "x.tar", list(members(0, 1, 2, 3)))
    manifest = manifest_of(path)
    cut(path, name, kept)
    entries = list(read_all(manifest))
    assert [e.index for e in entries] == [0, 1, 2, 3]
    assert questions(entries) == asked(*good) + [None] * (4 - len(good))
    for i in range(len(good), 4):
        assert is_bad(entries[i], f"{path}, sample s{i:03d}: the file ends before it")
    with pytest.raises(UserError, match=rf"x\.tar has \d+ bytes, dataset\.json says {manifest.shards[0].bytes}"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["s002.json", "s002.png"])
@pytest.mark.parametrize("place", [0, 30, -1])
def test_a_flipped_byte_in_a_member_spoils_only_its_sample(tmp_path, name, place):
    path = write_tar(tmp_path / "x.tar", list(members(0, 1, 2, 3)))
    manifest = manifest_of(path)
    with tarfile.open(path) as tar:
        member = tar.getmember(name)
    flip(path, member.offset_data + place % member.size)
    entries = list(read_all(manifest))
    assert questions(entries) == [*asked(0, 1), None, *asked(3)]
    assert is_bad(entries[2], f"{path}, sample s002: its checksum is not the index's")


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def test_a_flipped_byte_in_a_header_between_members_is_not_even_seen(tmp_path):
    path = write_tar(tmp_path / "x.tar", list(members(0, 1, 2, 3)))
    manifest = manifest_of(path)
    with tarfile.open(path) as tar:
        flip(path, tar.getmember("s001.json").offset + 3)
    assert questions(read_all(manifest)) == asked(0, 1, 2, 3)


def test_a_shard_that_vanishes_while_it_is_read_is_an_error_of_the_system(tmp_path):
    manifest = good_shards(tmp_path, number=6, per_shard=3)
    entries = read_all(manifest)
    assert next(entries).index == 0
    (tmp_path / "000001.tar").unlink()
    assert [next(entries).index, next(entries).index] == [1, 2]
    with pytest.raises(FileNotFoundError, match=r"000001\.tar"):
        next(entries)


def test_an_index_that_vanishes_is_an_error_of_the_system(tmp_path):
    manifest = good_shards(tmp_path, number=6, per_shard=3)
    index_path(tmp_path / "000001.tar").unlink()
    with pytest.raises(UserError, match=r"000001\.tar\.index does not exist; run `dsmemvp index"):
        list(read_all(manifest))


def test_files_are_closed_again_whatever_happens(tmp_path):
    manifest = good_shards(tmp_path, number=6, per_shard=3)
    index_path(tmp_path / "000001.tar").unlink()
    open_before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(UserError):
            list(read_all(manifest))
    assert len(os.listdir("/proc/self/fd")) == len(open_before)


def test_a_member_that_stands_twice_spoils_only_its_sample(tmp_path):
    path = write_tar(tmp_path / "x.tar", [*members(0), ("s001.json", b"{}"), ("s001.json", b"{}"), *members(2)])
    entries = list(read_all(manifest_of(path)))
    assert questions(entries) == [*asked(0), None, *asked(2)]
    assert is_bad(entries[1], f"{path}, sample s001: its member json stands twice")


@pytest.mark.parametrize("name", ["../x.json", "{outside}/x.json", "a/../../x.json"])
def test_a_name_that_climbs_out_spoils_its_sample_and_nothing_is_written_anywhere(tmp_path, monkeypatch, name):
    folder = tmp_path / "in" / "train"
    name = name.format(outside=tmp_path)
    path = write_tar(folder / "x.tar", [*members(0), (name, as_json(fields(1))), *members(2)])
    manifest = manifest_of(path)
    monkeypatch.chdir(folder)
    before = sorted(tmp_path.rglob("*"))
    entries = list(read_all(manifest))
    assert questions(entries) == [*asked(0), None, *asked(2)]
    assert is_bad(entries[1], str(path), "its name leads out of the folder")
    assert sorted(tmp_path.rglob("*")) == before


class Armed:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("ending", ["pyd", "pickle", "pkl", "pth", "pt", "npy"])
def test_a_pickled_member_is_never_opened(tmp_path, ending):
    marker = tmp_path / "was-opened"
    armed = pickle.dumps(Armed(marker))
    pickle.loads(armed)
    assert marker.exists()  # it would
    marker.unlink()
    path = write_tar(
        tmp_path / "x.tar", [(f"a.{ending}", armed), ("b.json", as_json(fields(1))), (f"b.{ending}", armed)]
    )
    alone, beside = read_all(manifest_of(path))
    with pytest.raises(SampleError, match=r"x\.tar, sample a: has no json member"):
        read_sample(alone)
    assert read_sample(beside).question == fields(1)["question"]
    assert alone.members == {} and beside.members.keys() == {"json"} and not marker.exists()


def test_a_member_without_ending_and_a_folder_are_passed_over(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("README"), io.BytesIO())
        entry = tarfile.TarInfo("folder.json")
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
        for name, content in members(0):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (found,) = read_all(manifest_of(path))
    assert found.where.endswith("sample s000")
