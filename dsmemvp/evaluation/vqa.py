"""VQAv2's accuracy and its normalisation of answers, as the official evaluation publishes them
(https://visualqa.org/evaluation.html; GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py).

accuracy = the mean, over the ten ways to leave one of the ten given answers out, of min(1, matches among the nine / 3)

If the ten answers are not all the same, prediction and answers are normalised: punctuation, then numbers, articles
and contractions. If they are, they are compared as they stand. Oddities of the published code are kept if they
can change a score; they are named where they stand.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

GIVEN = 10
"""Answers per question."""
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(DIGITS)}
ARTICLES = ("a", "an", "the")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIODS = 32
"""The published code gives a flag (re.UNICODE, 32) in the place of the number of full stops to take out."""

# The published table, by its right-hand sides. Its left-hand sides are these words without their apostrophe; of words
# with two or three apostrophes, the spellings that lack one of them. It has no "let's", "she'd", "she'll", "we'll", ...
# on purpose: "lets", "shed", "shell" and "well" are words. Nor "I'm": the text is in lower case by then.
CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _spellings(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, character in enumerate(word) if character == "'"]


CONTRACTIONS = {short: word for word in CONTRACTED.split() for short in _spellings(word)}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the published table has this one the wrong way round


def vqa_accuracy(predicted: str, answers: Sequence[str]) -> float:
    """0 to 1, for the answers that people gave."""
    answers, predicted = [_one_line(answer) for answer in answers], _one_line(predicted)
    if len(set(answers)) > 1:
        answers, predicted = [normalised(answer) for answer in answers], normalised(predicted)
    matches = sum(answer == predicted for answer in answers)
    # leaving out one of the matching answers leaves matches - 1
    left = matches * min(1.0, (matches - 1) / 3) + (len(answers) - matches) * min(1.0, matches / 3)
    return left / len(answers)


@lru_cache(maxsize=100_000)  # few answers make up most of the data
def normalised(answer: str) -> str:
    words = [NUMBERS.get(word, word) for word in _without_punctuation(answer).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    """A mark goes where it stands beside a space anywhere in the text, or where the text holds a number like 1,000;
    else it becomes a space. Full stops go unless a digit follows. Apostrophes and colons stay."""
    out = text
    thousands = re.search(r"\d,\d", text)
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or thousands else " ")
    return re.sub(r"\.(?!\d)", "", out, count=PERIODS)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
