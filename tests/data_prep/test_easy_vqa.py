"""Real pictures: easy-VQA through the converter, and its known scores through ours."""

import collections
import json
import tarfile

import prepared
import pytest

from data_prep import folder
from dsmemvp.evaluation.scores import predict, scored


@pytest.fixture(scope="module")
def unpacked(shared, tmp_path_factory):
    target = tmp_path_factory.mktemp("easy_vqa")
    with tarfile.open(shared / "data" / "easy_vqa" / "easy_vqa.tar.xz") as tar:
        tar.extractall(target, filter="data")
    return target


def test_the_test_split_goes_through_the_converter_and_scores_as_published(unpacked, tmp_path, monkeypatch, capsys):
    """README of the data: always the most common answer is right for 0.373, the best of each question for 0.670."""
    given = ["--rows", unpacked / "test.jsonl", "--images", unpacked, "--out", tmp_path / "test", "--per-shard", 2500]
    monkeypatch.setattr("sys.argv", ["folder", *map(str, given)])
    assert folder.main() == 0
    assert "9673 samples in 4 shards" in capsys.readouterr().out
    samples = prepared.samples(tmp_path / "test")
    rows = [json.loads(line) for line in (unpacked / "test.jsonl").open()]
    assert [(s.question, s.answer) for s in samples] == [(r["question"], r["answer"]) for r in rows]
    assert all(s.image == (unpacked / r["image"]).read_bytes() for s, r in zip(samples[:50], rows, strict=False))

    common = collections.Counter(s.answer for s in samples).most_common(1)[0][0]
    found = scored([predict(s, f" {common}.") for s in samples])
    assert found["Avg"].value == pytest.approx(37.3, abs=0.05)
    per_question = collections.defaultdict(collections.Counter)
    for row in map(json.loads, (unpacked / "train.jsonl").open()):
        per_question[row["question"]][row["answer"]] += 1
    best = {question: answers.most_common(1)[0][0] for question, answers in per_question.items()}
    found = scored([predict(s, f" {best[s.question]}.") for s in samples])
    assert found["Avg"].value == pytest.approx(67.0, abs=0.05)
    assert list(found) == ["Avg"]  # these samples carry none of ScienceQA's fields
