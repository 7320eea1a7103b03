"""VQAv2's accuracy against examples worked out by hand from the published rules: https://visualqa.org/evaluation.html
("Evaluation Code", steps of normalisation and the formula) and the tables of GT-Vision-Lab/VQA, vqaEval.py."""

from fractions import Fraction

import pytest

from dsmemvp.evaluation.vqa import CONTRACTIONS, normalised, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # upper case, spaces
        ("Red", "red"),
        ("  hot   dog ", "hot dog"),
        # articles
        ("a dog", "dog"),
        ("The Dog", "dog"),
        ("an apple and the pear", "apple and pear"),
        ("a", ""),
        ("theatre", "theatre"),
        # number words to digits, up to ten
        ("two", "2"),
        ("None", "0"),
        ("zero", "0"),
        ("Ten", "10"),
        ("one or two", "1 or 2"),
        ("eleven", "eleven"),
        ("twenty-one", "twenty 1"),
        # full stops go, decimal points stay
        ("no.", "no"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("st. louis", "st louis"),
        ("u.s.a.", "usa"),
        # punctuation becomes a space, or nothing where it stands beside a space
        ("red/white", "red white"),
        ("red / white", "red white"),
        ("red,white", "red white"),
        ("red, white", "red white"),
        ("red, white-blue", "red white blue"),
        ("t-shirt", "t shirt"),
        ("x - y-z", "x yz"),  # one mark beside a space: all of its kind go without a space
        ("(left)", "left"),
        ("what?!", "what"),
        ('"stop"', "stop"),
        ("a_b", "b"),
        # a comma between digits: all marks go without a space
        ("1,000", "1000"),
        ("1,000 red/white", "1000 redwhite"),
        # colons, apostrophes and signs of currency stay
        ("10:30", "10:30"),
        ("it's", "it's"),
        ("$5", "$5"),
        ("50%", "50%"),
        # contractions
        ("dont", "don't"),
        ("DONT", "don't"),
        ("don't", "don't"),
        ("oclock", "o'clock"),
        ("ten oclock", "10 o'clock"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("yalld've", "yalld've"),
        ("y'alld've", "y'all'd've"),
        ("twas", "'twas"),
        ("somebody'd", "somebodyd"),  # as published
        # words that would be contractions, and are not in the table
        ("lets", "lets"),
        ("shed", "shed"),
        ("well", "well"),
        ("its", "its"),
        ("ill", "ill"),
    ],
)
def test_normalisation(answer, expected):
    assert normalised(answer) == expected


def test_only_so_many_full_stops_go_as_the_published_code_takes_out():
    assert normalised(". " * 33) == "."


def test_the_table_of_contractions_has_the_published_size():
    assert len(CONTRACTIONS) == 114  # 120 as published, less let's and she's, which stay, and four with a capital I


@pytest.mark.parametrize(
    ("given", "predicted", "tenths"),
    [
        # matches -> mean over the ten subsets of nine of min(matches there / 3, 1), in tenths
        ({"yes": 10}, "yes", 10),
        ({"yes": 4, "no": 6}, "yes", 10),
        ({"yes": 3, "no": 7}, "yes", 9),  # (7 * 1 + 3 * 2/3) / 10
        ({"yes": 2, "no": 8}, "yes", 6),  # (8 * 2/3 + 2 * 1/3) / 10
        ({"yes": 1, "no": 9}, "yes", 3),  # (9 * 1/3 + 1 * 0) / 10
        ({"no": 10}, "yes", 0),
        # a tie: both are right
        ({"yes": 5, "no": 5}, "yes", 10),
        ({"yes": 5, "no": 5}, "no", 10),
        ({"a": 2, "b": 2, "c": 2, "d": 2, "e": 2}, "b", 6),
        # normalised where the given answers differ: both sides
        ({"two": 1, "2": 2, "3": 7}, "Two.", 9),
        ({"a dog": 2, "dog": 1, "The dog": 1, "cat": 6}, "dog", 10),
        ({"1,000": 3, "many": 7}, "1000", 9),
        ({"dont": 3, "do": 7}, "don't", 9),
        # and not where they do not
        ({"two": 10}, "2", 0),
        ({"two": 10}, "two", 10),
        ({"a dog": 10}, "dog", 0),
        ({"a dog": 10}, "a dog", 10),
        ({"dog": 10}, "dog.", 0),
        # line ends, tabs and spaces around do not count as a difference
        ({" two": 5, "two\n": 5}, "two", 10),
        ({" two": 5, "two\n": 5}, "2", 0),
        ({"hot\tdog": 10}, "hot dog", 10),
        ({"yes": 10}, "", 0),
    ],
)
def test_accuracy(given, predicted, tenths):
    answers = [answer for answer, times in given.items() for _ in range(times)]
    assert vqa_accuracy(predicted, answers) == pytest.approx(tenths / 10)
    assert vqa_accuracy(predicted, answers[::-1]) == pytest.approx(tenths / 10)


@pytest.mark.parametrize("matches", range(11))
def test_accuracy_is_the_mean_over_all_ways_to_leave_one_answer_out(matches):
    answers = ["cat"] * matches + ["dog"] * (10 - matches)
    nine = [answers[:i] + answers[i + 1 :] for i in range(10)]
    expected = sum(min(Fraction(rest.count("cat"), 3), Fraction(1)) for rest in nine) / 10
    assert vqa_accuracy("cat", answers) == pytest.approx(float(expected))
