"""Predictions and scores: which classes a sample counts in, what is read out of decoded text, and values worked out
by hand."""

import json
from dataclasses import asdict

import pytest
from making import sample

from dsmemvp.errors import UserError
from dsmemvp.evaluation.confidence import Score
from dsmemvp.evaluation.scores import Prediction, as_json, classes_of, main_score, points, predict, scored, table


@pytest.mark.parametrize(
    ("context", "image", "classes"),
    [("a hint", None, {"TXT"}), ("", b"x", {"IMG"}), ("a hint", b"x", {"TXT", "IMG"}), ("", None, {"NO"})],
)
def test_hint_and_image_count_both_and_no_means_neither(context, image, classes):
    asked = sample(context=context, image=image, scores={"grade": "kindergarten"})
    assert set(classes_of(asked, "choice")) == classes


def test_a_caption_is_no_hint():
    asked = {"caption": "a cat.", "scores": {"subject": "cooking"}}
    assert classes_of(sample(**asked, image=b"x"), "choice") == ("IMG",)
    assert classes_of(sample(**asked), "choice") == ("NO",)


@pytest.mark.parametrize("kind", ["choice", "open"])
def test_samples_without_scienceqa_s_fields_have_none_of_its_columns(kind):
    for scores in ({}, {"task": "scienceqa"}, {"subject": None, "grade": ""}):
        assert classes_of(sample(context="a hint", image=b"x", scores=scores), kind) == ()


@pytest.mark.parametrize(
    ("subject", "column"),
    [
        ("natural science", "NAT"),
        ("social science", "SOC"),
        ("language science", "LAN"),
        ("cooking", None),
    ],
)
def test_subjects_have_their_columns(subject, column):
    assert set(classes_of(sample(scores={"subject": subject}), "choice")) == {"NO"} | ({column} - {None})


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
    ],
)
def test_grades_have_their_columns(grade, column):
    assert set(classes_of(sample(scores={"grade": grade}), "open")) == {"NO"} | ({column} - {None})


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
    assert (result.id, result.kind, result.answers, result.predicted) == ("q9", "choice", ("B",), predicted)
    assert result.text == decoded and points(result) == (predicted == "B")


def test_a_sample_without_id_goes_by_its_number():
    result = predict(sample(index=17), "A")
    assert (result.id, result.index) == ("17", 17)


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
        ("amazon.com", " Amazon.com. The", True),
        ("u.s.a.", "u.s.a", True),
        ("st. louis", "St. Louis. It is", True),
        ("st. louis", "st. paul", False),
        ("best", "best. Of all", True),
        ("Fig. 3", " fig. 3.", True),
        ("approx. 5 cm.", "approx. 5 cm", True),
        ("fig. 3", "fig. 4.", False),
    ],
)
def test_open_answers_are_compared_without_case_up_to_the_full_stop(answer, decoded, right):
    result = predict(sample(choices=(), answer=answer), decoded)
    assert result.kind == "open" and points(result) == right


TEN = ["yes"] * 10


@pytest.mark.parametrize(
    ("scores", "kind", "answers", "predicted", "classes"),
    [
        ({"task": "vqa", "answers": TEN, "answer_type": "yes/no"}, "vqa", tuple(TEN), "A big", ("yes/no",)),
        ({"task": "vqa", "answers": TEN}, "vqa", tuple(TEN), "A big", ()),
        ({"task": "vqa", "answers": TEN[:9]}, "open", ("x y. z",), "a big", ()),
        ({"task": "vqa", "answers": [1] * 10}, "open", ("x y. z",), "a big", ()),
        (
            {"task": "vqa", "structural_type": "query", "semantic_type": "rel"},
            *("gqa", ("x y. z",), "a big", ("query", "rel", "Open")),
        ),
        ({"structural_type": "verify"}, "gqa", ("x y. z",), "a big", ("verify", "Binary")),
        ({"task": "caption", "references": ["X.", "Y"]}, "caption", ("X.", "Y"), "A big. C.", ()),
        ({"task": "caption"}, "caption", ("X Y. Z",), "A big. C.", ()),
        ({"task": "caption", "references": "a"}, "caption", ("X Y. Z",), "A big. C.", ()),
        ({"task": "caption", "references": []}, "caption", ("X Y. Z",), "A big. C.", ()),
        ({"task": "conversation"}, "open", ("x y. z",), "a big", ()),
        ({}, "open", ("x y. z",), "a big", ()),
    ],
)
def test_the_kind_follows_from_the_samples_fields(scores, kind, answers, predicted, classes):
    result = predict(sample(choices=(), answer="X Y. Z", scores={"id": "q", **scores}, index=3), " A big. C.")
    assert result == Prediction(3, "q", kind, " A big. C.", predicted, answers, classes)


@pytest.mark.parametrize(
    ("answer", "decoded", "right"),
    [
        ("No. 5", " No. 5.", True),
        ("No. 5", " No. 7.", False),
        ("no", " No. The picture shows a dog.", True),
        ("U.S. flag", " U.S. flag.", True),
        ("U.S. flag", " U.S. army.", False),
        ("King Jr. Boulevard", " King Jr. Boulevard. It", True),
        ("B", " B.", True),
    ],
)
def test_a_full_stop_inside_of_an_answer_ends_nothing(answer, decoded, right):
    for scores in ({}, {"structural_type": "query"}):
        found = predict(sample(choices=(), answer=answer, scores=scores), decoded)
        assert points(found) == float(right), found


def test_a_vqa_answer_is_compared_as_the_published_code_does():
    """As it stands, where all ten are the same; else normalised, which takes the case away."""
    for answers, decoded, right in ((["Red"] * 10, " Red.", 1.0), (["red"] * 10, " Red.", 0.0)):
        assert points(predict(sample(choices=(), answer="", scores={"answers": answers}), decoded)) == right
    several = [*["washington d.c. area"] * 6, *["dc"] * 4]
    assert points(predict(sample(choices=(), scores={"answers": several}), " Washington D.C. area.")) == 1.0


def test_choices_come_before_the_task():
    assert predict(sample(scores={"task": "vqa", "answers": TEN}), "A").kind == "choice"


def test_a_prediction_is_a_line_of_json():
    result = predict(sample(scores={"subject": "natural science"}, image=b"x"), "A")
    row = json.loads(json.dumps(asdict(result)))
    assert Prediction(**{**row, "answers": tuple(row["answers"]), "classes": tuple(row["classes"])}) == result


def prediction(right: bool, *classes: str, kind: str = "choice") -> Prediction:
    return Prediction(0, "x", kind, "A", "A" if right else "B", ("A",), classes)


def values(scores: dict[str, Score]) -> dict[str, float]:
    return {name: score.value for name, score in scores.items()}


def test_accuracies_are_those_worked_out_by_hand():
    predictions = [
        prediction(True, "NAT", "TXT", "IMG"),
        prediction(False, "NAT", "IMG"),
        prediction(True, "SOC", "NO"),
        prediction(True, "NAT", "TXT"),
        prediction(False, kind="open"),
    ]
    found = scored(predictions)
    assert values(found) == pytest.approx({"NAT": 200 / 3, "SOC": 100, "TXT": 100, "IMG": 50, "NO": 100, "Avg": 60})
    assert {name: score.samples for name, score in found.items()} == {
        **{"NAT": 3, "SOC": 1, "TXT": 2},
        **{"IMG": 2, "NO": 1, "Avg": 5},
    }
    assert found["SOC"].low == found["SOC"].high == 100 and found["IMG"].low < 50 < found["IMG"].high
    assert scored([]) == {}


def test_gqa_wants_the_very_answer_and_counts_types_beside_it():
    def asked(answer, decoded, structural, semantic):
        scores = {"task": "vqa", "structural_type": structural, "semantic_type": semantic}
        return predict(sample(choices=(), answer=answer, scores=scores), decoded)

    found = scored(
        [
            asked("yes", " Yes.", "verify", "attr"),
            asked("no", " not", "logical", "attr"),
            asked("remote control", " remote control. The", "query", "obj"),
            asked("the girl", " girl.", "query", "rel"),  # articles count
            asked("2", " two.", "choose", "attr"),  # and number words
        ]
    )
    expected = {"verify": 100, "logical": 0, "query": 50, "choose": 0, "attr": 100 / 3, "obj": 100, "rel": 0}
    assert values(found) == pytest.approx({**expected, "Binary": 100 / 3, "Open": 50, "Accuracy": 40})


def test_vqa_counts_soft_accuracy_by_type_of_answer():
    def asked(answers, decoded, kind):
        scores = {"task": "vqa", "answers": answers, "answer_type": kind}
        return predict(sample(choices=(), answer=answers[0], scores=scores), decoded)

    found = scored(
        [
            asked(["yes"] * 9 + ["no"], " yes.", "yes/no"),  # 1
            asked(["yes"] * 8 + ["no"] * 2, " no.", "yes/no"),  # 2 of 10: (8 * 2/3 + 2 * 1/3) / 10 = 0.6
            asked(["2"] * 7 + ["3"] * 3, " Three.", "number"),  # 3 of 10: (7 * 1 + 3 * 2/3) / 10 = 0.9
        ]
    )
    assert values(found) == pytest.approx({"yes/no": 80, "number": 90, "Overall": 250 / 3})


def test_scores_do_not_depend_on_the_order_of_the_predictions():
    predictions = [prediction(i % 3 == 0, "NAT" if i % 2 else "SOC") for i in range(40)]
    assert scored(predictions) == scored(predictions[::-1])


def test_the_main_score_is_that_of_all_samples():
    one = Score(1.0, 0.0, 2.0, 3)
    assert main_score({"NAT": Score(9.0, 9.0, 9.0, 1), "Avg": one}) is one
    assert main_score({"ROUGE-L": Score(9.0, 9.0, 9.0, 1), "CIDEr": one}) is one
    with pytest.raises(UserError, match="no score at all"):
        main_score({})


def test_the_table_lists_classes_in_the_published_order_and_leaves_gaps():
    rows = {
        "captions off": {"Avg": Score(60.0, 50.0, 71.0, 9), "IMG": Score(50.0, 1.0, 99.0, 9)},
        "on": {"Avg": Score(100.0, 100.0, 100.0, 9), "NAT": Score(200 / 3, 1.0, 99.0, 9)},
    }
    assert table(rows) == (
        "|              |    NAT |    IMG |          Avg |\n"
        "|--------------|-------:|-------:|-------------:|\n"
        "| captions off |      - |  50.00 | 60.00 ±10.50 |\n"
        "| on           |  66.67 |      - | 100.00 ±0.00 |"
    )


def test_the_table_has_all_columns_where_all_have_samples():
    names = ["G7-12", "NO", "Avg", "LAN", "NAT", "IMG", "SOC", "G1-6", "TXT"]
    head = table({"x": dict.fromkeys(names, Score(1.0, 1.0, 1.0, 1))}).splitlines()[0]
    assert head.replace(" ", "") == "||NAT|SOC|LAN|TXT|IMG|NO|G1-6|G7-12|Avg|"


def test_columns_that_nobody_knows_stand_in_front():
    head = table({"x": dict.fromkeys(["Overall", "why", "how", "other"], Score(1.0, 1.0, 1.0, 1))}).splitlines()[0]
    assert head.replace(" ", "") == "||how|why|other|Overall|"


def test_the_json_has_plain_numbers_and_the_intervals_beside_them():
    rows = as_json({"captions off": {"Avg": Score(60.0, 50.0, 71.0, 9)}})
    assert json.loads(json.dumps(rows)) == {
        "accuracy": {"captions off": {"Avg": 60.0}},
        "interval": {"captions off": {"Avg": [50.0, 71.0]}},
        "counted": {"captions off": {"Avg": 9}},
    }
