"""F1 of classes, against values worked out by hand."""

import numpy as np
import pytest

from dsmemvp.data.sample import Sample, label_text
from dsmemvp.errors import UserError
from dsmemvp.evaluation.scores import f1_scores, main_score, predict, scored, table


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


def test_it_counts_in_the_same_way_however_many_samples_have_the_same_classes():
    """The sum over samples and classes, written out, for thousands of them."""
    rng = np.random.default_rng(0)
    drawn = [[np.flatnonzero(rng.random(23) < 0.1).tolist() for _ in range(2)] for _ in range(3000)]
    scores = f1_scores([(label_text(found), label_text(right)) for found, right in drawn])
    both, found, right = np.zeros((3, 23))
    for named, true in drawn:
        both[sorted(set(named) & set(true))] += 1
        found[named] += 1
        right[true] += 1
    assert scores["F1-micro"].value == pytest.approx(200 * both.sum() / (found.sum() + right.sum()))
    assert scores["F1-macro"].value == pytest.approx((200 * both / (found + right)).mean())
    assert all(score.samples == 3000 and score.low < score.value < score.high for score in scores.values())
    assert scores == f1_scores([(label_text(found), label_text(right)) for found, right in reversed(drawn)])


def test_data_without_any_class_are_told():
    with pytest.raises(UserError, match="no sample has a class in labels and none was predicted"):
        main_score(scored([predict(_sample((), True, i), "-") for i in range(3)]))
