"""ScienceQA's official layout -> samples with what training and scoring need; a bad problem is named."""

import json

import pytest
from prepared import here, keys, samples
from stand_ins import write_scienceqa

from data_prep import scienceqa
from dsmemvp.data.manifest import read_manifest
from dsmemvp.evaluation.scores import classes_of


@pytest.fixture
def raw(tmp_path):
    return write_scienceqa(tmp_path / "raw", 12)


@pytest.fixture
def convert(raw, tmp_path, monkeypatch, capsys):
    def convert(*options, out="train"):
        return here(scienceqa, monkeypatch, capsys, "--data", raw, "--out", tmp_path / out, *options)

    return convert


def change(path, function) -> None:
    content = json.loads(path.read_text())
    function(content)
    path.write_text(json.dumps(content))


def test_problems_become_samples_in_the_order_of_the_split(convert, raw, tmp_path):
    code, out, err = convert()
    assert (code, err) == (0, "") and out.startswith("12 samples in 1 shard")
    assert keys(tmp_path / "train") == [str(n) for n in range(1, 13)]
    first, _, third, fourth = samples(tmp_path / "train")[:4]
    assert (first.question, first.choices, first.answer) == ("Which number is 1?", ("none", "1", "all"), 1)
    assert (first.context, first.caption) == ("", "caption 1")
    assert first.image == (raw / "images" / "train" / "1" / "image.png").read_bytes()
    assert third.image is None and third.caption == "" and fourth.context == "Count."
    assert first.scores == {
        "id": "1",
        "task": "scienceqa",
        "grade": 2,
        "subject": "language science",
        "topic": "numbers",
        "category": "Counting",
        "skill": "Count",
        "split": "train",
    }
    assert classes_of(first, "choice") == ("LAN", "IMG", "G1-6") and classes_of(fourth, "choice") == (
        "LAN",
        "TXT",
        "IMG",
        "G1-6",
    )
    assert classes_of(third, "choice") == ("NAT", "NO", "G1-6")


def test_the_split_is_that_of_the_folder_or_is_named(convert, tmp_path):
    assert convert(out="minival")[0] == 0 and keys(tmp_path / "minival") == ["9000"]
    assert convert("--split", "val", out="x")[0] == 0 and read_manifest(tmp_path / "x").split == "val"
    code, _, err = convert(out="dev")
    assert code == 1 and "pid_splits.json has train, val, minival, not 'dev'" in err


def test_captions_may_be_missing_or_lie_elsewhere(convert, raw, tmp_path):
    (raw / "captions.json").rename(tmp_path / "other.json")
    assert convert()[0] == 0 and {s.caption for s in samples(tmp_path / "train")} == {""}
    assert convert("--captions", tmp_path / "other.json")[0] == 0
    assert samples(tmp_path / "train")[0].caption == "caption 1"
    code, _, err = convert("--captions", tmp_path / "none.json")
    assert code == 1 and "none.json does not exist" in err


@pytest.mark.parametrize("name", ["problems.json", "pid_splits.json", "captions.json"])
def test_a_file_that_is_not_what_it_should_be_is_named(convert, raw, name):
    (raw / name).write_text("{")
    code, _, err = convert()
    assert code == 1 and f"{raw / name} is not JSON" in err and err.count("\n") == 1
    (raw / name).write_text("[]")
    assert f"{raw / name} is not an object" in convert()[2]


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"question": None}, "question is not text: None"),
        ({"choices": "ab"}, "choices is not a list: 'ab'"),
        ({"choices": [1]}, "choices is not a list of texts"),
        ({"answer": 7}, "answer 7 is not the index"),
        ({"answer": True}, "answer is not a number: True"),
        ({"grade": "kindergarten"}, "grade 'kindergarten' is none of grade1 to grade12"),
        ({"image": "../../val/9000/none.png"}, "none.png does not exist"),
        ({"image": "../../../../secret.png"}, "lies outside"),
    ],
)
def test_a_bad_problem_is_named_or_left_out(convert, raw, tmp_path, changed, part):
    (tmp_path / "secret.png").write_bytes(b"")
    change(raw / "problems.json", lambda problems: problems["5"].update(changed))
    code, _, err = convert()
    assert code == 1 and f"{raw / 'problems.json'}, problem 5: " in err and part in err and err.count("\n") == 1
    code, out, err = convert("--on-bad-row", "skip")
    assert (code, err) == (0, "") and "left out: " in out and part in out
    assert keys(tmp_path / "train") == [str(n) for n in range(1, 13) if n != 5]


def test_a_problem_that_is_missing_or_stands_twice_is_named(convert, raw):
    change(raw / "problems.json", lambda problems: problems.pop("5"))
    assert "problem 5: has no '5'" in convert()[2]
    change(raw / "pid_splits.json", lambda splits: splits.update(train=["1", "2", "1"]))
    assert "problem 1: key '1' stands twice" in convert()[2]
