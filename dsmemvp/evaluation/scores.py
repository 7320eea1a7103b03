"""From decoded text to predictions, and from predictions to scores. Pure functions.

choice   ScienceQA's protocol as published (MemVP, eval.py:33-100, the same classes as ScienceQA's own
         tools/evaluate_acc.py): the first capital letter of the decoded text; a letter that is not among the choices is
         wrong. Columns: Avg, and ScienceQA's classes of samples that have its fields, subject or grade.
open     the answer in lower case must equal the right one. Columns as for choice.
vqa      VQAv2's accuracy (vqa.py). Columns: its answer types and Overall.
gqa      GQA's accuracy (eval.py of https://cs.stanford.edu/people/dorarad/gqa): the answer must equal the given one,
         nothing is normalised but upper case. Columns: structural and semantic types, Binary, Open, and Accuracy. Its
         consistency, validity, plausibility, distribution and grounding need further files and are left out.
caption  CIDEr, BLEU-4, METEOR and ROUGE-L (captions.py).
label    The class with the highest logit. Columns: Accuracy, F1-micro, F1-macro.
labels   All classes whose probability is at least a half. Columns: F1-micro, F1-macro. In both, F1-macro is the mean
         over the classes that occur among right answers or predictions.

If a task is asked with "The answer is", the answer is read up to the first full stop at the end of a word.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsmemvp import markdown
from dsmemvp.data.sample import Sample, label_text
from dsmemvp.data.tasks import is_scienceqa
from dsmemvp.data.text import chosen, letter
from dsmemvp.errors import UserError
from dsmemvp.evaluation.captions import CAPTION_COLUMNS, caption_scores
from dsmemvp.evaluation.confidence import Score, mean_score, score_of_sums
from dsmemvp.evaluation.vqa import GIVEN, vqa_accuracy

SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
KINDS = ("choice", "vqa", "gqa", "caption", "open", "label", "labels")
UNSCORED = ("caption", "labels")
"""Those without points of their own."""
NO_POINTS = (
    "captions and several classes have no score per sample, on which a comparison rests; leave those samples out, or"
    " evaluate the runs one by one"
)
F1 = ("F1-micro", "F1-macro")
MAIN = ("Avg", "Overall", "Accuracy", *CAPTION_COLUMNS, *F1)
"""The columns that the table shows with their interval; the first of them that an evaluation has is its main score."""
COLUMNS = (
    *("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg"),
    *("yes/no", "number", "other", "Overall"),
    *("verify", "query", "choose", "logical", "compare", "obj", "attr", "cat", "rel", "global"),
    *("Binary", "Open", "Accuracy"),
    *CAPTION_COLUMNS,
    *F1,
)
"""The published order. Other columns stand before these, sorted by name."""
FULL_STOP = re.compile(
    r"(?<!\bst)(?<!\bmt)(?<!\bdr)(?<!\bmr)(?<!\bms)(?<!\bmrs)(?<!\bjr)(?<!\bvs)(?<!\b[a-z])"
    r"\.(?=\s|$)(?!(?<=\bno\.)\s\d)",
    re.IGNORECASE,
)
"""Not the point of 3.5, amazon.com, st. louis, u.s. flag or no. 5."""


@dataclass(frozen=True)
class Prediction:
    index: int
    """The sample's running number."""
    id: str
    kind: str
    """One of KINDS."""
    text: str
    """What the model wrote, as decoded; for a choice by likelihood, the letter."""
    predicted: str
    """What was read out of it; empty if nothing could be."""
    answers: tuple[str, ...]
    """The right letter, the ten answers of VQAv2, the one answer, or the references of a caption."""
    classes: tuple[str, ...]
    """The columns of the table it counts in, besides that of all samples."""
    cut: str = ""
    """The setting at which the text was cut, as in "evaluation.max_new_tokens=10"; empty if it ended by itself."""


def predict(sample: Sample, decoded: str) -> Prediction:
    """Read the answer out of the text that the model wrote."""
    kind = kind_of(sample)
    name = str(sample.scores.get("id", sample.index))
    answers: tuple[str, ...]
    if kind == "choice":
        choice = chosen(decoded, len(sample.choices))
        answers, predicted = (sample.letter,), "" if choice is None else letter(choice)
    elif kind == "caption":
        given = sample.scores.get("references")
        references = given if given and isinstance(given, list) else [sample.answer]
        answers, predicted = tuple(map(str, references)), decoded.strip()
    elif kind in ("label", "labels"):
        answers, predicted = (label_text(sample.labels or ()),), decoded
    elif kind == "vqa":
        answers = tuple(sample.scores["answers"])
        predicted = _answer(decoded, answers)
    else:
        answers = (_bare(str(sample.answer)).lower(),)
        predicted = _answer(decoded.lower(), answers)
    return Prediction(sample.index, name, kind, decoded, predicted, answers, classes_of(sample, kind))


def kind_of(sample: Sample) -> str:
    """Which protocol a sample is scored by."""
    scores, given = sample.scores, sample.scores.get("answers")
    if sample.choices:
        return "choice"
    if sample.labels is not None:
        return "labels" if sample.several else "label"
    if scores.get("task") == "caption":
        return "caption"
    if isinstance(given, list) and len(given) == GIVEN and all(isinstance(answer, str) for answer in given):
        return "vqa"
    return "gqa" if {"structural_type", "semantic_type"} & scores.keys() else "open"


def _answer(text: str, answers: tuple[str, ...]) -> str:
    """The first sentence, or the whole text if that is an answer, as "fig. 3" is."""
    whole = _bare(text)
    return whole if whole in answers else _bare(FULL_STOP.split(text, maxsplit=1)[0])


def _bare(text: str) -> str:
    return text.strip().removesuffix(".")


def classes_of(sample: Sample, kind: str) -> tuple[str, ...]:
    if kind == "vqa":
        return _named(sample.scores.get("answer_type"))
    if kind == "gqa":
        structural = sample.scores.get("structural_type")
        # a question for which the answer is one of two, as GQA's eval.py tells them apart
        two = ("Open" if structural == "query" else "Binary") if structural else None
        return _named(structural, sample.scores.get("semantic_type"), two)
    return () if kind in ("caption", "label", "labels") else _scienceqa_classes(sample)


def _named(*classes: Any) -> tuple[str, ...]:
    return tuple(str(name) for name in classes if name)


def _scienceqa_classes(sample: Sample) -> tuple[str, ...]:
    """A sample with hint and image counts in both TXT and IMG. None for samples of other data sets."""
    if not is_scienceqa(sample):
        return ()
    hint, image = bool(sample.context.strip()), sample.image is not None
    grade = re.fullmatch(r"(?:grade)?(\d+)", str(sample.scores.get("grade", "")))
    number = int(grade[1]) if grade else 0
    return _named(
        SUBJECTS.get(str(sample.scores.get("subject"))),
        "TXT" if hint else None,
        "IMG" if image else None,
        "NO" if not hint and not image else None,
        "G1-6" if 1 <= number <= 6 else "G7-12" if 7 <= number <= 12 else None,
    )


def points(prediction: Prediction) -> float:
    """0 to 1, for all kinds but UNSCORED."""
    if prediction.kind == "vqa":
        return vqa_accuracy(prediction.predicted, prediction.answers)
    return float(prediction.predicted == prediction.answers[0])


def scored(predictions: Sequence[Prediction]) -> dict[str, Score]:
    """A score for each column that has samples, in per cent; of captions in their usual units times 100. What scores of
    captions need and do not find, they do without: captions.missing() says so."""
    counted: dict[str, list[float]] = {}
    for prediction in predictions:
        if prediction.kind not in UNSCORED:
            value = points(prediction)
            for name in (*prediction.classes, _of_all(prediction.kind)):
                counted.setdefault(name, []).append(value)
    scores = {name: mean_score(np.array(values)) for name, values in counted.items()}
    if classified := [p for p in predictions if p.kind in ("label", "labels")]:
        scores |= f1_scores([(p.predicted, p.answers[0]) for p in classified])
    captions = sorted((p for p in predictions if p.kind == "caption"), key=lambda p: p.index)
    if captions:
        scores |= caption_scores([p.predicted for p in captions], [p.answers for p in captions])
    return scores


def _of_all(kind: str) -> str:
    return {"vqa": "Overall", "gqa": "Accuracy", "label": "Accuracy"}.get(kind, "Avg")


def f1_scores(pairs: Sequence[tuple[str, str]]) -> dict[str, Score]:
    """Of (predicted, right) classes as `label_text` writes them: F1 over all decisions, and the mean over classes. For
    each class and sample it counts whether it was right, predicted, both."""
    different, times = zip(*sorted(Counter(pairs).items()), strict=True)
    found, right = (_indicators([pair[side] for pair in different], pairs) for side in (0, 1))
    rows = np.stack((found & right, found, right), axis=-1)

    def f1(both: np.ndarray, either: np.ndarray) -> np.ndarray:
        return np.divide(200.0 * both, either, out=np.zeros_like(both), where=either > 0)

    def micro(sums: np.ndarray, _: int) -> np.ndarray:
        return f1(sums[..., 0], sums[..., 1] + sums[..., 2])

    def macro(sums: np.ndarray, _: int) -> np.ndarray:
        counts = sums.reshape(*sums.shape[:-1], -1, 3)
        either = counts[..., 1] + counts[..., 2]
        occurring = np.maximum((either > 0).sum(-1), 1)
        return f1(counts[..., 0], either).sum(-1) / occurring

    if not rows.size:
        return {}
    of_all = np.repeat(rows.sum(1), times, axis=0)
    of_each = score_of_sums(rows.reshape(len(rows), -1), macro, np.array(times))
    return dict(zip(F1, (score_of_sums(of_all, micro), of_each), strict=True))


def _indicators(texts: Sequence[str], pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """bool [texts, C]: which of the C classes that occur in any of the pairs a text names."""
    named = {text: [int(label) for label in text.split() if label != "-"] for pair in pairs for text in pair}
    classes = np.unique([label for own in named.values() for label in own])
    labels = [named[text] for text in texts]
    rows = np.repeat(np.arange(len(texts)), [len(own) for own in labels])
    indicators = np.zeros((len(texts), len(classes)), dtype=bool)
    indicators[rows, np.searchsorted(classes, [label for own in labels for label in own])] = True
    return indicators


def main_score(scores: dict[str, Score]) -> Score:
    """The one by which two checkpoints are compared: more is better. Raises UserError if there is none."""
    for name in MAIN:
        if name in scores:
            return scores[name]
    raise UserError(
        "no score at all: no sample was evaluated, or captions without the package that scores them, or no sample has a"
        " class in labels and none was predicted"
    )


def as_json(rows: dict[str, dict[str, Score]]) -> dict[str, Any]:
    """What evaluation.json holds of the scores: under "accuracy" {evaluation: {column: value}}, under "interval" the
    two ends of the 95 % confidence interval, under "counted" the number of samples."""
    return {
        "accuracy": {row: {name: s.value for name, s in scores.items()} for row, scores in rows.items()},
        "interval": {row: {name: [s.low, s.high] for name, s in scores.items()} for row, scores in rows.items()},
        "counted": {row: {name: s.samples for name, s in scores.items()} for row, scores in rows.items()},
    }


def scores_of(content: dict[str, Any]) -> dict[str, dict[str, Score]]:
    """What `as_json` wrote, back."""
    scores: dict[str, dict[str, Score]] = {}
    for row, values in content["accuracy"].items():
        intervals, counted = content["interval"][row], content["counted"][row]
        scores[row] = {n: Score(v, intervals[n][0], intervals[n][1], counted[n]) for n, v in values.items()}
    return scores


def table(rows: dict[str, dict[str, Score]]) -> str:
    """Several evaluations, one line each, as Markdown; +- half of the 95 % confidence interval beside the scores of all
    samples."""
    present = {name for scores in rows.values() for name in scores}
    names = [*sorted(present - set(COLUMNS)), *(name for name in COLUMNS if name in present)]
    columns = [[name.rjust(6), *(_cell(name, scores.get(name)) for scores in rows.values())] for name in names]
    return "\n".join(markdown.table([["", *rows], *columns], left=1))


def _cell(name: str, score: Score | None) -> str:
    if score is None:
        return "-"
    return f"{score.value:.2f} ±{score.margin:.2f}" if name in MAIN else f"{score.value:.2f}"
