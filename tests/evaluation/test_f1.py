"""F1 of classes, against values worked out by hand."""

import pytest

from dsmemvp.data.sample import Sample
from dsmemvp.evaluation.scores import f1_scores, predict, scored, table


def _sample(labels, several=False, index=0) -> Sample:
    return Sample("q", "", labels=labels, several=several, index=index)


def test_one_class_each():
    """Right 0 0 1 2, predicted 0 1 1 1: F1 of 0 is 2/3, of 1 is 2/4, of 2 is 0."""
    pairs = zip((0, 0, 1, 2), ("0", "1", "1", "1"), strict=True)
    scores = scored([predict(_sample((right,), index=i), found) for i, (right, found) in enumerate(pairs)])
    assert list(scores) == ["Accuracy", "F1-micro", "F1-macro"]
    assert scores["Accuracy"].value == scores["F1-micro"].value == pytest.approx(50)
    assert scores["F1-macro"].value == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)
    assert all(score.low <= score.value <= score.high and score.samples == 4 for score in scores.values())
    assert "Accuracy" in table({"x": scores})


def test_several_classes():
    """Right {0,1} {} {1}, predicted {0} {1} {1}: both 2, predicted 3, right 3."""
    pairs = zip(((0, 1), (), (1,)), ("0", "1", "1"), strict=True)
    scores = scored([predict(_sample(right, True, i), found) for i, (right, found) in enumerate(pairs)])
    assert scores.keys() == {"F1-micro", "F1-macro"}
    assert scores["F1-micro"].value == pytest.approx(100 * 2 * 2 / 6)
    assert scores["F1-macro"].value == pytest.approx(100 * (1 + 2 * 1 / 4) / 2)


def test_a_class_that_occurs_nowhere_counts_nowhere():
    assert f1_scores([("-", "-")]) == {}
    assert f1_scores([("4", "4"), ("-", "-")])["F1-macro"].value == 100
