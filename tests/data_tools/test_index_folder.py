"""`dsmemvp index`: folders of any origin become usable, or are refused with the names of the shards."""

import json
import os
import shutil

import pytest
import webdataset
from making import as_json, fields, good_shards, picture, write_tar

from dsmemvp.cli import main as cli
from dsmemvp.data.manifest import FILE, read_manifest
from dsmemvp.data.sample import DESCRIBE, EncodedSample, read_sample
from dsmemvp.data.stream import read_all
from dsmemvp.errors import UserError


@pytest.fixture
def index(capsys):
    def index(*arguments):
        code = cli.main(["index", *map(str, arguments)])
        return code, *capsys.readouterr()

    return index


def samples(folder):
    return [read_sample(entry) for entry in read_all(read_manifest(folder)) if isinstance(entry, EncodedSample)]


def test_shards_that_stock_webdataset_wrote_become_usable(tmp_path, index):
    for number in range(3):
        with webdataset.TarWriter(str(tmp_path / f"part-{number}.tar")) as tar:
            for i in range(4):
                tar.write({"__key__": f"{number}{i}", "json": fields(4 * number + i), "jpg": picture("JPEG"), "cls": 1})
    code, out, _ = index(tmp_path, "--split", "val")
    assert code == 0 and f"12 samples in 3 shards -> {tmp_path / FILE}" in out and "never read: 12 x .cls" in out
    assert read_manifest(tmp_path).split == "val"
    assert [s.question for s in samples(tmp_path)] == [fields(i)["question"] for i in range(12)]
    assert all(s.image == picture("JPEG") for s in samples(tmp_path))


def test_a_folder_that_img2dataset_wrote_becomes_pictures_with_captions(tmp_path, index):
    """Its layout: key.jpg, key.json with caption, url, key and status, key.txt; and tables beside the shards."""
    members = []
    for key, caption in (("000000000", "a red square"), ("000000001", "two cats")):
        about = {"caption": caption, "url": "http://x/y.jpg", "key": key, "status": "success", "width": 6, "height": 4}
        members += [(f"{key}.jpg", picture("JPEG")), (f"{key}.json", as_json(about)), (f"{key}.txt", caption.encode())]
    write_tar(tmp_path / "00000.tar", members)
    (tmp_path / "00000_stats.json").write_text("{}")
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    assert index(tmp_path)[0] == 0
    read = samples(tmp_path)
    assert [s.answer for s in read] == ["a red square", "two cats"]
    assert all(s.question == DESCRIBE and s.free and s.image == picture("JPEG") for s in read)


def test_data_that_were_indexed_twice_are_the_same(tmp_path, index):
    good_shards(tmp_path / "train", 7, 3)
    before = {path.name: path.read_bytes() for path in (tmp_path / "train").iterdir()}
    assert index(tmp_path / "train")[0] == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "train").iterdir()} == before


def test_a_shard_taken_away_leaves_with_its_index(tmp_path, index):
    good_shards(tmp_path / "train", 7, 3)
    (tmp_path / "train" / "000001.tar").unlink()
    assert index(tmp_path / "train")[0] == 0
    assert read_manifest(tmp_path / "train").samples == 4
    assert not (tmp_path / "train" / "000001.tar.index").exists()


def test_shards_that_cannot_be_used_are_all_named_and_no_manifest_is_left(tmp_path, index):
    good_shards(tmp_path, 9, 3)
    (tmp_path / "000000.tar").write_bytes(b"")
    cut = (tmp_path / "000002.tar").read_bytes()[:1000]
    (tmp_path / "000002.tar").write_bytes(cut)
    code, out, err = index(tmp_path)
    assert code == 1 and out == "" and err.count("\n") == 1
    assert "000000.tar is not a readable tar file (it is empty)" in err and "000002.tar is not a readable" in err
    assert "000001.tar" not in err and not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "holds no .tar file"),
        (lambda folder: write_tar(folder / "x.tar.gz", []), "unpack the compressed ones"),
        (lambda folder: write_tar(folder / "x.tar", []), "its shards hold no sample"),
    ],
)
def test_a_folder_without_samples_is_refused(tmp_path, index, make, message):
    make(tmp_path / "some")
    code, _, err = index(tmp_path / "some")
    assert code == 1 and message in err


def test_check_says_that_all_is_as_it_was(tmp_path, index):
    good_shards(tmp_path, 5, 3)
    code, out, _ = index(tmp_path, "--check")
    assert code == 0 and "5 samples in 2 shards: all as" in out


def _contents(folder):
    return {path.name: path.read_bytes() if path.is_file() else "" for path in folder.iterdir()}


def _flip(folder):
    path = folder / "000001.tar"
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)


def _pipe(folder):
    path = folder / "000001.tar.index"
    path.unlink()
    os.mkfifo(path)


def _flip_header(folder):
    """The time of a member, which no sample is made of."""
    path = folder / "000001.tar"
    content = bytearray(path.read_bytes())
    content[140] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_flip, "000001.tar is not the file that was indexed: sample s003: its checksum is not the index's"),
        (_flip_header, "000001.tar is not the file that was indexed: its samples are, what is around them not"),
        (
            lambda f: shutil.copy(f / "000000.tar", f / "000001.tar"),
            "000001.tar is not the file that was indexed: sample s003: its checksum is not the index's",
        ),
        (
            lambda f: shutil.copy(f / "000000.tar.index", f / "000001.tar.index"),
            "000001.tar.index is not the index that dataset.json was written for. Fetch",
        ),
        (lambda f: (f / "000001.tar.index").unlink(), "000001.tar.index does not exist"),
        (_pipe, "000001.tar.index is not a regular file"),
        (lambda f: (f / "000000.tar").unlink(), "000000.tar"),
        (lambda f: (f / "000000.tar").write_bytes((f / "000000.tar").read_bytes()[:1024]), "000000.tar"),
    ],
)
def test_check_finds_what_has_changed_and_writes_nothing(tmp_path, index, change, message):
    """It names shard, sample and reason."""
    good_shards(tmp_path, 6, 3)
    change(tmp_path)
    before = _contents(tmp_path)
    code, out, err = index(tmp_path, "--check")
    assert code == 1 and message in err and out == "" and err.count("\n") == 1
    assert _contents(tmp_path) == before


def test_check_offers_to_take_in_a_shard_that_is_new_but_not_one_that_is_damaged(tmp_path, index):
    good_shards(tmp_path, 6, 3)
    shutil.copy(tmp_path / "000000.tar", tmp_path / "new.tar")
    code, _, err = index(tmp_path, "--check")
    assert (
        code == 1 and "new.tar is not in dataset.json" in err and f"take it in with `dsmemvp index {tmp_path}`" in err
    )
    _flip(tmp_path)
    code, _, err = index(tmp_path, "--check")
    assert code == 1 and "sample s003" in err and "new.tar is not in dataset.json" in err
    assert "`dsmemvp index" not in err and "Fetch or prepare these shards again" in err


def test_a_manifest_of_an_earlier_version_is_made_anew(tmp_path, index):
    good_shards(tmp_path, 6, 3)
    content = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**content, "schema": 1}))
    with pytest.raises(UserError, match=rf"schema 1, this version reads 3; run `dsmemvp index {tmp_path}`"):
        read_manifest(tmp_path)
    assert index(tmp_path)[0] == 0 and read_manifest(tmp_path).samples == 6
