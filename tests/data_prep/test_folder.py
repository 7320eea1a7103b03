"""Images + JSON lines -> shards: good rows arrive, bad ones are told with file and line."""

import json
import subprocess
import sys

import pytest
from making import picture

from data_prep import folder as program
from dsmemvp.data.manifest import read_manifest
from dsmemvp.data.order import file_order
from dsmemvp.data.sample import read_sample
from dsmemvp.data.stream import read_in_order

GOOD = {"id": "q0", "question": "Q?", "choices": ["a", "b"], "answer": 1}


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Writes rows (dictionaries or raw lines), runs the program, returns (exit code, stdout, stderr)."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    (tmp_path / "images" / "sub" / "one.PNG").write_bytes(picture())
    (tmp_path / "images" / "one.tif").write_bytes(picture("TIFF"))
    (tmp_path / "images" / "bare").write_bytes(picture())
    (tmp_path / "secret.png").write_bytes(picture())

    def convert(*rows, options=()):
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        arguments = ["--rows", tmp_path / "rows.jsonl", "--images", tmp_path / "images", "--out", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", ["folder", *map(str, arguments), *options])
        code = program.main()
        return code, *capsys.readouterr()

    return convert


def samples(folder):
    manifest = read_manifest(folder)
    blocks = file_order([shard.samples for shard in manifest.shards])
    return [read_sample(entry) for block in blocks for entry in read_in_order(manifest, block)]


def test_good_rows_become_samples(convert, tmp_path):
    code, out, err = convert(
        {**GOOD, "image": "sub/one.PNG", "subject": "natural science", "extra": [1, None]},
        {"question": "Open?", "answer": "red", "context": "C", "caption": "D"},
        {"question": "Open too?", "answer": "blue", "choices": []},
        {**GOOD, "id": "q 3/x.y", "answer": "a"},
        {**GOOD, "id": None},
        {**GOOD, "id": None},
        options=["--per-shard", "4"],
    )
    assert (code, err) == (0, "") and "6 samples in 2 shards" in out
    first, second, third, fourth, fifth, sixth = samples(tmp_path / "out")
    assert first.image == picture() and first.answer == 1
    assert first.scores == {"id": "q0", "subject": "natural science", "extra": [1, None], "task": "scienceqa"}
    assert (second.answer, second.context, second.caption, second.image) == ("red", "C", "D", None)
    assert second.scores["task"] == "vqa" and second.where.endswith("sample 000000002")
    assert third.answer == "blue" and third.scores["task"] == "vqa"
    assert fourth.answer == 0 and fourth.where.endswith("sample q_3_x_y")
    assert fifth.where.endswith("sample 000000005") and sixth.where.endswith("sample 000000006")
    assert read_manifest(tmp_path / "out").split == "out"


def test_the_split_can_be_named(convert, tmp_path):
    convert(GOOD, options=["--split", "val"])
    assert read_manifest(tmp_path / "out").split == "val"


def test_empty_lines_are_passed_over_and_counted(convert):
    code, _, err = convert(b"", GOOD, b"   ", b"{")
    assert code == 1 and "rows.jsonl, line 4: is not JSON" in err


BAD = [
    (b"{", "is not JSON"),
    (b'{"question": "caf\xe9"}', "is not JSON"),
    (b"[1]", "is not a JSON object"),
    ({**GOOD, "id": "x", "question": ""}, "has no question"),
    ({**GOOD, "id": "x", "answer": "c"}, "answer 'c' is none of its choices"),
    ({**GOOD, "id": "x", "answer": 2}, "answer 2 is not the index"),
    ({"question": "Q?"}, "has neither choices nor an answer"),
    ({**GOOD, "id": "x", "image": "none.png"}, "none.png does not exist"),
    ({**GOOD, "id": "x", "image": "sub"}, "sub does not exist"),
    ({**GOOD, "id": "x", "image": "../secret.png"}, "image '../secret.png' lies outside"),
    ({**GOOD, "id": "x", "image": "sub/../../secret.png"}, "lies outside"),
    ({**GOOD, "id": "x", "image": "/etc/hostname"}, "lies outside"),
    ({**GOOD, "id": "x", "image": "one.tif"}, "one.tif does not end in one of png"),
    ({**GOOD, "id": "x", "image": "bare"}, "bare does not end in one of png"),
    ({**GOOD, "id": "x", "question": "\ud800"}, "not Unicode"),
    (GOOD, "key 'q0' stands twice"),
]


@pytest.mark.parametrize(("row", "part"), BAD)
def test_a_bad_row_ends_the_run_in_one_line_with_file_and_line(convert, tmp_path, row, part):
    code, _, err = convert(GOOD, row)
    assert code == 1 and err.count("\n") == 1
    assert err.startswith(f"data_prep.folder: error: {tmp_path / 'rows.jsonl'}, line 2: ") and part in err
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_bad_rows_are_left_out_and_told_where_that_is_asked_for(convert, tmp_path):
    last = {**GOOD, "id": "last"}
    code, out, err = convert(GOOD, *(row for row, _ in BAD), last, options=["--on-bad-row", "skip"])
    assert (code, err) == (0, "")
    told = [line for line in out.splitlines() if line.startswith("left out: ")]
    for number, ((_, part), line) in enumerate(zip(BAD, told, strict=True), 2):
        assert f"rows.jsonl, line {number}: " in line and part in line
    assert [s.scores["id"] for s in samples(tmp_path / "out")] == ["q0", "last"]


def test_a_link_that_leads_out_of_the_images_is_refused(convert, tmp_path):
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    code, _, err = convert({**GOOD, "image": "link.png"})
    assert code == 1 and "lies outside" in err


def test_a_lost_image_is_named(convert, tmp_path):
    (tmp_path / "images" / "sub" / "one.PNG").unlink()
    code, _, err = convert({**GOOD, "image": "sub/one.PNG"})
    assert code == 1 and err.count("\n") == 1 and "images/sub/one.PNG does not exist" in err


def test_a_missing_file_ends_in_one_line_and_exit_code_1(tmp_path):
    arguments = ["--rows", tmp_path / "nowhere.jsonl", "--images", tmp_path, "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "data_prep.folder", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"data_prep.folder: error: {tmp_path / 'nowhere.jsonl'} does not exist\n"
