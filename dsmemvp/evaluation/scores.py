"""From decoded text to scores. Pure functions.

ScienceQA's protocol as published (MemVP, eval.py:33-100, the same classes as ScienceQA's own tools/evaluate_acc.py):
the first capital letter of the decoded text; a letter that is not among the choices is wrong. Open answers are compared
after lower-casing, up to the first full stop that is no decimal point.
"""

import re
from dataclasses import dataclass

from dsmemvp.data.sample import Sample

SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
COLUMNS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg")


@dataclass(frozen=True)
class Prediction:
    id: str
    answer: str
    """The right answer: a letter, or text."""
    predicted: str
    """What was read out of the decoded text; empty where nothing could be."""
    classes: tuple[str, ...]
    """The columns of the table it counts in, besides Avg."""

    @property
    def right(self) -> bool:
        return self.predicted == self.answer


def predict(sample: Sample, decoded: str) -> Prediction:
    """Read the answer out of the text that the model decoded after "The answer is"."""
    name = str(sample.scores.get("id", sample.index))
    if not sample.choices:
        texts = (str(sample.answer), decoded)
        answer, predicted = (re.split(r"\.(?!\d)", text, maxsplit=1)[0].strip().lower() for text in texts)
    else:
        letter = re.search("[A-Z]", decoded)
        valid = letter is not None and ord(letter[0]) - ord("A") < len(sample.choices)
        answer, predicted = sample.letter, letter[0] if letter and valid else ""
    return Prediction(name, answer, predicted, classes_of(sample))


def classes_of(sample: Sample) -> tuple[str, ...]:
    """ScienceQA's classes. A sample with hint and image counts in both TXT and IMG."""
    classes = []
    if (subject := sample.scores.get("subject")) in SUBJECTS:
        classes.append(SUBJECTS[subject])
    hint = bool(sample.context.strip())
    if hint:
        classes.append("TXT")
    if sample.image is not None:
        classes.append("IMG")
    if not hint and sample.image is None:
        classes.append("NO")
    grade = re.fullmatch(r"(?:grade)?(\d+)", str(sample.scores.get("grade", "")))
    if grade and 1 <= int(grade[1]) <= 12:
        classes.append("G1-6" if int(grade[1]) <= 6 else "G7-12")
    return tuple(classes)


def accuracies(predictions: list[Prediction]) -> dict[str, float]:
    """Per cent right in each class that has samples, and Avg over all."""
    counted: dict[str, list[bool]] = {}
    for prediction in predictions:
        for name in (*prediction.classes, "Avg"):
            counted.setdefault(name, []).append(prediction.right)
    return {name: 100 * sum(right) / len(right) for name, right in counted.items()}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Accuracies of several evaluations, one line each, as Markdown."""
    columns = [c for c in COLUMNS if any(c in row for row in rows.values())]
    width = max(len(name) for name in rows)
    lines = ["| " + " " * width + " | " + " | ".join(f"{c:>6}" for c in columns) + " |"]
    lines.append("|" + "-" * (width + 2) + "|" + "|".join("-------:" for _ in columns) + "|")
    for name, row in rows.items():
        cells = " | ".join(f"{row[c]:6.2f}" if c in row else "     -" for c in columns)
        lines.append(f"| {name:<{width}} | {cells} |")
    return "\n".join(lines)
