"""Images + JSON lines -> shards: good rows arrive, bad ones are told with file and line."""

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from making import encoded, picture
from PIL import Image
from prepared import here, samples

from data_prep import folder as program
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.manifest import read_manifest

GOOD = {"id": "q0", "question": "Q?", "choices": ["a", "b"], "answer": 1}


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Writes rows (dictionaries or raw lines), runs the program, returns (exit code, stdout, stderr)."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    (tmp_path / "images" / "sub" / "one.PNG").write_bytes(picture())
    (tmp_path / "images" / "one.ppm").write_bytes(picture("BMP"))
    (tmp_path / "images" / "bare").write_bytes(picture())
    (tmp_path / "secret.png").write_bytes(picture())

    def convert(*rows, options=()):
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        arguments = ["--rows", tmp_path / "rows.jsonl", "--images", tmp_path / "images", "--out", tmp_path / "out"]
        return here(program, monkeypatch, capsys, *arguments, *options)

    return convert


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
    assert first.scores == {"id": "q0", "subject": "natural science", "extra": [1, None], "task": "multiple choice"}
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


LONG = "k" * 91
BAD = [
    (b"{", "is not JSON"),
    (b'{"question": "caf\xe9"}', "is not JSON"),
    (b"[1]", "is not a JSON object"),
    ({**GOOD, "id": "x0", "question": ""}, "has no question"),
    ({**GOOD, "id": "x1", "answer": "c"}, "answer 'c' is none of its choices"),
    ({**GOOD, "id": "x2", "answer": 2}, "answer 2 is not the index"),
    ({"question": "Q?"}, "has neither choices nor an answer"),
    ({**GOOD, "id": "x3", "image": "none.png"}, "none.png does not exist"),
    ({**GOOD, "id": "x4", "image": "sub"}, "sub does not exist"),
    ({**GOOD, "id": "x5", "image": "../secret.png"}, "image '../secret.png' lies outside"),
    ({**GOOD, "id": "x6", "image": "sub/../../secret.png"}, "lies outside"),
    ({**GOOD, "id": "x7", "image": "/etc/hostname"}, "lies outside"),
    ({**GOOD, "id": "x8", "image": "one.ppm"}, "one.ppm does not end in one of png"),
    ({**GOOD, "id": "x9", "image": "bare"}, "bare does not end in one of png"),
    ({**GOOD, "id": "x10", "question": "\ud800"}, "not Unicode"),
    ({**GOOD, "id": LONG}, "is empty or longer than 90 bytes"),
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


def test_with_resizing_images_are_looked_into(convert, tmp_path):
    """Whatever their ending: what comes out has its own."""
    (tmp_path / "images" / "damaged.png").write_bytes(picture()[:50])
    good = [{**GOOD, "id": "a", "image": "bare"}, {**GOOD, "id": "b", "image": "one.ppm"}]
    bad = {**GOOD, "id": "c", "image": "damaged.png"}
    assert convert(bad)[0] == 0
    code, _, err = convert(*good, bad, options=["--resize", "8"])
    assert code == 1 and f"rows.jsonl, line 3: {tmp_path / 'images' / 'damaged.png'}: image cannot be decoded" in err
    code, _, err = convert(*good, options=["--resize", "8", "--max-pixels", "23"])
    assert code == 1 and "image of 6 x 4 pixels is over" in err
    for format, name in (("png", "PNG"), ("jpg", "JPEG")):
        assert convert(*good, options=["--resize", "8", "--format", format])[0] == 0
        images = [Image.open(io.BytesIO(s.image)) for s in samples(tmp_path / "out")]
        assert [(i.format, i.size, i.mode) for i in images] == [(name, (8, 8), "RGB")] * 2


def test_resized_as_png_training_sees_the_same_pixels(convert, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (37, 21, 4), dtype=np.uint8)
    content = encoded(Image.fromarray(noise, "RGBA"), icc_profile=np.random.default_rng(1).bytes(5000))
    (tmp_path / "images" / "noise.png").write_bytes(content)
    convert({**GOOD, "image": "noise.png"}, options=["--resize", "16"])
    (sample,) = samples(tmp_path / "out")
    see = ImageTransform(16, 10_000)
    assert torch.equal(see(content, ""), see(sample.image, ""))
    assert len(sample.image) < 2000


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--per-shard", "0"], "--per-shard: must be positive, is 0"),
        (["--resize", "-1"], "--resize: must be positive"),
        (["--max-pixels", "0"], "--max-pixels: must be positive"),
        (["--quality", "101"], "--quality: must be 1 to 100"),
    ],
)
def test_options_that_make_no_sense_are_refused_and_nothing_is_lost(convert, tmp_path, options, part):
    convert(GOOD)
    code, _, err = convert(GOOD, options=options)
    assert code == 1 and part in err and len(samples(tmp_path / "out")) == 1


def test_a_missing_folder_of_images_is_told_even_where_bad_rows_are_left_out(convert, tmp_path):
    shutil.rmtree(tmp_path / "images")
    code, _, err = convert(GOOD, {**GOOD, "id": "b", "image": "a.png"}, options=["--on-bad-row", "skip"])
    assert code == 1 and f"{tmp_path / 'images'}, the folder of images, does not exist" in err


def test_nothing_to_write_is_an_error(convert):
    assert "there is no row to write\n" in convert(b"")[2]
    skip = ["--on-bad-row", "skip"]
    told = convert(b"{", b"{", options=skip)[2]
    assert "there is no row to write; all rows were left out, the first: " in told and "line 1: is not JSON" in told
    told = convert({**GOOD, "image": "none.png"}, options=skip)[2]
    assert "there is no row to write: all 1 were left out" in told and "line 1: image" in told


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
