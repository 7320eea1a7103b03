"""Scores: which classes a sample counts in, what is read out of decoded text, and accuracies worked out by hand."""

import pytest
from making import sample

from dsmemvp.evaluation.scores import Prediction, accuracies, classes_of, predict, table


@pytest.mark.parametrize(
    ("context", "image", "classes"),
    [("a hint", None, {"TXT"}), ("", b"x", {"IMG"}), ("a hint", b"x", {"TXT", "IMG"}), ("", None, {"NO"})],
)
def test_hint_and_image_count_both_and_no_means_neither(context, image, classes):
    assert set(classes_of(sample(context=context, image=image))) == classes


def test_a_caption_is_no_hint():
    assert classes_of(sample(caption="a cat.", image=b"x")) == ("IMG",)
    assert classes_of(sample(caption="a cat.")) == ("NO",)


@pytest.mark.parametrize(
    ("subject", "column"),
    [
        ("natural science", "NAT"),
        ("social science", "SOC"),
        ("language science", "LAN"),
        ("cooking", None),
        (None, None),
    ],
)
def test_subjects_have_their_columns(subject, column):
    assert set(classes_of(sample(scores={"subject": subject}))) == {"NO"} | ({column} - {None})


@pytest.mark.parametrize(
    ("grade", "column"),
    [
        ("grade1", "G1-6"),
        ("grade6", "G1-6"),
        ("grade7", "G7-12"),
        ("grade12", "G7-12"),
        (6, "G1-6"),
        (7, "G7-12"),
        ("11", "G7-12"),
        ("grade0", None),
        (13, None),
        ("grade", None),
        ("kindergarten", None),
        (None, None),
    ],
)
def test_grades_have_their_columns(grade, column):
    assert set(classes_of(sample(scores={"grade": grade}))) == {"NO"} | ({column} - {None})


@pytest.mark.parametrize(
    ("decoded", "predicted"),
    [
        ("B", "B"),
        (" B.", "B"),
        ("the B or A", "B"),
        ("b", ""),
        ("", ""),
        ("42.", ""),
        ("C", "C"),
        ("D", ""),
        ("Z", ""),
        ("D, or rather B", ""),
        ("\u00c9 B", "B"),
    ],
)
def test_the_first_capital_letter_counts_if_it_is_one_of_the_choices(decoded, predicted):
    three = sample(choices=("x", "y", "z"), answer=1, scores={"id": "q9"})
    result = predict(three, decoded)
    assert (result.id, result.answer, result.predicted) == ("q9", "B", predicted)
    assert result.right == (predicted == "B")


def test_a_sample_without_id_goes_by_its_number():
    assert predict(sample(index=17), "A").id == "17"


@pytest.mark.parametrize(
    ("answer", "decoded", "right"),
    [
        ("two dogs", " two dogs. And more", True),
        ("Two Dogs", "two dogs.", True),
        ("two dogs.", "TWO DOGS", True),
        ("two dogs", "two dog.", False),
        ("yes", "", False),
        ("3.5", "3.5.", True),
        ("3.5", "3.7.", False),
        (".5", "", False),
        ("3", "3. 5", True),
    ],
)
def test_open_answers_are_compared_without_case_up_to_the_full_stop(answer, decoded, right):
    assert predict(sample(choices=(), answer=answer), decoded).right is right


def prediction(right: bool, *classes: str) -> Prediction:
    return Prediction("x", "A", "A" if right else "B", classes)


def test_accuracies_are_those_worked_out_by_hand():
    predictions = [
        prediction(True, "NAT", "TXT", "IMG"),
        prediction(False, "NAT", "IMG"),
        prediction(True, "SOC", "NO"),
        prediction(True, "NAT", "TXT"),
        prediction(False),
    ]
    found = accuracies(predictions)
    assert found == pytest.approx({"NAT": 200 / 3, "SOC": 100, "TXT": 100, "IMG": 50, "NO": 100, "Avg": 60})
    assert accuracies([]) == {}


def test_the_table_lists_classes_in_the_published_order_and_leaves_gaps():
    rows = {"captions off": {"Avg": 60.0, "IMG": 50.0, "NAT": 200 / 3}, "on": {"Avg": 100.0, "NAT": 0.0}}
    assert table(rows) == (
        "|              |    NAT |    IMG |    Avg |\n"
        "|--------------|-------:|-------:|-------:|\n"
        "| captions off |  66.67 |  50.00 |  60.00 |\n"
        "| on           |   0.00 |      - | 100.00 |"
    )


def test_the_table_has_all_columns_where_all_have_samples():
    names = ["G7-12", "NO", "Avg", "LAN", "NAT", "IMG", "SOC", "G1-6", "TXT"]
    head = table({"x": dict.fromkeys(names, 1.0)}).splitlines()[0]
    assert head.replace(" ", "") == "||NAT|SOC|LAN|TXT|IMG|NO|G1-6|G7-12|Avg|"
