"""Captions alone -> shards of text, from JSON lines and from the shards of other converters."""

import json

import pytest
from prepared import here, keys, samples

from data_prep import captions_text
from data_prep.shards import Row, write_shards
from dsmemvp.data.captions import caption_of


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Runs the converter into out/."""
    return lambda *options: here(captions_text, monkeypatch, capsys, "--out", tmp_path / "out", *options)


def test_json_lines_become_samples_without_a_question_of_their_own(convert, tmp_path):
    rows = tmp_path / "captions.jsonl"
    rows.write_text('{"caption": " A red ball. ", "id": "cc/12"}\n\n"Two dogs"\n')
    code, out, err = convert("--rows", rows)
    assert (code, err) == (0, "") and out.startswith("2 samples")
    assert keys(tmp_path / "out") == ["cc_12", "000000003"]
    assert [caption_of(sample) for sample in samples(tmp_path / "out")] == ["A red ball.", "Two dogs"]
    assert all(sample.image is None and sample.free for sample in samples(tmp_path / "out"))


def test_of_other_shards_each_caption_is_taken_once(convert, tmp_path):
    asked = {"question": "What?", "choices": ["a", "b"], "answer": 0}
    told = {"question": "Describe the image.", "task": "caption", "answer": "A dog"}
    fields = [{**asked, "caption": "A cat"}, asked, told, {**asked, "caption": "A dog"}]
    write_shards((Row(f"k{i}", row) for i, row in enumerate(fields)), tmp_path / "in", "train", per_shard=3)
    code, _, err = convert("--shards", tmp_path / "in")
    assert (code, err) == (0, "")
    assert keys(tmp_path / "out") == ["000000001", "000000003"]
    assert [caption_of(sample) for sample in samples(tmp_path / "out")] == ["A cat", "A dog"]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (json.dumps({"caption": "  "}), "captions.jsonl, line 1: its caption is empty"),
        (json.dumps({"text": "A cat"}), 'line 1: is neither a text nor an object with a "caption"'),
        ("A cat", "line 1: is not JSON"),
    ],
)
def test_a_bad_line_is_told_with_its_place(convert, tmp_path, line, part):
    rows = tmp_path / "captions.jsonl"
    rows.write_text(line + '\n{"caption": "A dog"}\n')
    code, _, err = convert("--rows", rows)
    assert code == 1 and part in err
    code, out, _ = convert("--rows", rows, "--on-bad-row", "skip")
    assert code == 0 and "left out" in out
