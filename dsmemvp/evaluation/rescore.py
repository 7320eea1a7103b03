"""Files of predictions -> the table of scores again, without a model and without a GPU."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from dsmemvp.errors import UserError
from dsmemvp.evaluation import captions
from dsmemvp.evaluation.remarks import remarks
from dsmemvp.evaluation.scores import KINDS, Prediction, scored, table
from dsmemvp.json_text import parse_json

LONGEST_LINE = 16 << 20
LABELS = re.compile(r"-|\d{1,9}( \d{1,9})*")
ROUNDED = 1e-2
"""What a sum of logarithms in 16 bits may be above 0."""
FIELDS = {"index": int, "id": str, "kind": str, "text": str, "predicted": str, "answers": list, "classes": list}


def rescore(paths: Sequence[Path]) -> str:
    """The table for all evaluations in the files, and below it what could not be counted. Raises UserError that names
    file, line and what is wrong there, and OSError."""
    rows: dict[str, list[Prediction]] = {}
    for path in paths:
        for name, predictions in read_predictions(path).items():
            rows[f"{path}: {name}" if len(paths) > 1 else name] = predictions
    lines = [table({name: scored(predictions) for name, predictions in rows.items()})]
    lines += [remark for name, predictions in rows.items() for remark in remarks(name, predictions)]
    if any(p.kind == "caption" for predictions in rows.values() for p in predictions):
        lines += captions.missing()
    return "\n".join(lines)


def read_predictions(path: Path) -> dict[str, list[Prediction]]:
    """{evaluation: predictions} of a predictions.jsonl. Raises UserError."""
    rows: dict[str, list[Prediction]] = {}
    first: dict[tuple[str, int], int] = {}
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file; give a predictions.jsonl")
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(_lines(file, path), 1):
            where = f"{path}, line {number}"
            if not line.endswith("\n"):
                raise UserError(
                    f"{where}: is not whole, as an evaluation leaves it that was cut off; run the evaluation again, "
                    "it resumes there, or delete the line"
                )
            evaluation, prediction = _prediction(line, where)
            same = first.setdefault((evaluation, prediction.index), number)
            if same != number:
                raise UserError(f"{where}: sample {prediction.index} of {evaluation!r} is also in line {same}")
            rows.setdefault(evaluation, []).append(prediction)
    if not rows:
        raise UserError(f"{path}: holds no prediction")
    return rows


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    try:
        while line := file.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise UserError(f"{path}: has a line of over {LONGEST_LINE} characters; give a predictions.jsonl")
            yield line
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error.reason}); give a predictions.jsonl") from None


def _check_probabilities(row: dict[str, Any], where: str) -> None:
    """Of the answer, or of each choice; files of earlier versions have none."""
    alone, several = row.get("log_probability", 0.0), row.get("log_likelihoods", [0.0])
    for number in (alone, *(several if isinstance(several, list) else [None])):
        if type(number) not in (int, float) or not number <= ROUNDED:
            raise UserError(f"{where}: {json.dumps(number)[:60]} is no logarithm of a probability")


def _prediction(line: str, where: str) -> tuple[str, Prediction]:
    row: Any = parse_json(line, f"{where}:")
    if not isinstance(row, dict):
        raise UserError(f"{where}: is not an object; give a predictions.jsonl that dsmemvp evaluate wrote")
    for key, kind in FIELDS.items():
        if type(row.get(key)) is not kind:
            what = (
                f"{key} is {json.dumps(row[key])[:60]}, not of type {kind.__name__}" if key in row else f"has no {key}"
            )
            raise UserError(f"{where}: {what}; give a predictions.jsonl that this version of dsmemvp evaluate wrote")
    for key in ("answers", "classes"):
        if not all(isinstance(text, str) for text in row[key]):
            raise UserError(f"{where}: {key} is not a list of texts")
    if row["kind"] not in KINDS:
        raise UserError(f"{where}: kind is {row['kind']!r}, none of {', '.join(KINDS)}")
    if not row["answers"]:
        raise UserError(f"{where}: answers is empty")
    _check_probabilities(row, where)
    if row["kind"] in ("label", "labels") and not all(LABELS.fullmatch(t) for t in (row["predicted"], *row["answers"])):
        raise UserError(f"{where}: predicted and answers of kind {row['kind']} are numbers of classes, or -")
    cut = row.get("cut", "")  # files of earlier versions do not say it
    if not isinstance(cut, str):
        raise UserError(f"{where}: cut is {json.dumps(cut)[:60]}, not a text")
    given: dict[str, Any] = {key: tuple(row[key]) if kind is list else row[key] for key, kind in FIELDS.items()}
    return str(row.get("evaluation", "")), Prediction(**given, cut=cut)
