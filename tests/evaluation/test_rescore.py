"""Files of predictions scored again, and files that cannot be."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from dsmemvp.errors import UserError
from dsmemvp.evaluation.rescore import read_predictions, rescore
from dsmemvp.evaluation.scores import Prediction, scored, table

PREDICTIONS = [Prediction(i, f"q{i}", "choice", " A.", "A", ("A" if i % 3 else "B",), ("IMG", "é")) for i in range(10)]


def line(prediction: Prediction = PREDICTIONS[0], evaluation: str = "captions off", **changed) -> str:
    row = {"evaluation": evaluation, **asdict(prediction), **changed}
    return json.dumps({key: value for key, value in row.items() if value is not None}) + "\n"


def written(path: Path, *lines: str) -> Path:
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_what_is_read_is_what_was_written(tmp_path):
    lines = [line(p, name) for name in ("captions off", "captions on") for p in PREDICTIONS]
    path = written(tmp_path / "predictions.jsonl", *lines)
    assert read_predictions(path) == {"captions off": PREDICTIONS, "captions on": PREDICTIONS}
    scores = scored(PREDICTIONS)
    assert rescore([path]) == table({"captions off": scores, "captions on": scores})


def test_several_files_are_told_apart(tmp_path):
    one = written(tmp_path / "a.jsonl", line())
    other = written(tmp_path / "b.jsonl", line(answers=["A"]))
    said = rescore([one, other]).splitlines()
    assert said[2].startswith(f"| {one}: captions off ") and " 0.00 ±0.00 " in said[2]
    assert said[3].startswith(f"| {other}: captions off ") and " 100.00 ±0.00 " in said[3]


def test_fields_that_are_not_needed_may_be_there_and_the_evaluation_may_be_missing(tmp_path):
    path = written(tmp_path / "p.jsonl", line(evaluation=None, likelihoods=[1.0]))
    assert read_predictions(path) == {"": PREDICTIONS[:1]}


def test_captions_that_cannot_be_scored_here_are_spoken_of(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    path = written(tmp_path / "p.jsonl", line(), line(index=1, kind="caption"))
    assert "pip install 'dsmemvp[captions]'" in rescore([path]).splitlines()[-1]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (line()[:50], "line 3: is not whole, as an evaluation leaves it that was cut off"),
        (line(index=5).rstrip("\n"), "line 3: is not whole"),
        ("{oops\n", "line 3: is not JSON"),
        ("\n", "line 3: is not JSON"),
        ("[" * 100_000 + "\n", "line 3: is not usable JSON: it is nested too deeply"),
        ("[1]\n", "line 3: is not an object"),
        (line(index=5, predicted=None), "line 3: has no predicted"),
        (line(index="5"), 'line 3: index is "5", not of type int'),
        (line(index=True), "line 3: index is true"),
        (line(index=5, answers="A"), 'line 3: answers is "A", not of type list'),
        (line(index=5, answers=[1]), "line 3: answers is not a list of texts"),
        (line(index=5, answers=[]), "line 3: answers is empty"),
        (line(index=5, kind="essay"), "line 3: kind is 'essay', none of choice, vqa, gqa, caption, open"),
        (line(index=5, cut=3), "line 3: cut is 3, not a text"),
        (line(index=5, log_probability="x"), 'line 3: "x" is no logarithm of a probability'),
        (line(index=5, log_probability=7), "line 3: 7 is no logarithm of a probability"),
        (line(index=5, log_probability=float("nan")), "line 3: NaN is no logarithm"),
        (line(index=5, log_likelihoods="abc"), "line 3: null is no logarithm"),
        (line(index=5, kind="labels"), "line 3: predicted and answers of kind labels are numbers of classes"),
        (line(index=1), "line 3: sample 1 of 'captions off' is also in line 2"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, bad, said):
    path = written(tmp_path / "p.jsonl", line(), line(PREDICTIONS[1]), bad)
    with pytest.raises(UserError) as error:
        rescore([path])
    assert str(error.value).startswith(f"{path}, {said}")


def test_a_file_that_is_no_text_or_empty_or_not_there_is_named(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"p\.jsonl: is not UTF-8 text"):
        rescore([path])
    with pytest.raises(UserError, match=r"p\.jsonl: holds no prediction"):
        rescore([written(path)])
    with pytest.raises(FileNotFoundError, match=r"no\.jsonl"):
        rescore([tmp_path / "no.jsonl"])
