"""What an evaluation leaves behind: files in the run's folder, points and texts in TensorBoard, the table."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsmemvp.atomic_files import replace_file
from dsmemvp.checkpoints.checkpoint import State
from dsmemvp.counting import counted
from dsmemvp.data.manifest import Manifest
from dsmemvp.data.text import options
from dsmemvp.errors import UserError
from dsmemvp.evaluation import captions
from dsmemvp.evaluation.confidence import Score
from dsmemvp.evaluation.predictions import Predicted
from dsmemvp.evaluation.remarks import cut_answers, remarks, unread_choices
from dsmemvp.evaluation.scores import as_json, scored, table
from dsmemvp.training.event_file import EventFile

SHOWN = 4
"""Predictions whose texts are shown in TensorBoard, evenly spaced over the data: the same ones at every step."""


@dataclass(frozen=True)
class Report:
    run: Path
    suffix: str
    """Of the files, such as "-blind" (naming.py)."""
    group: str
    """Of the points in TensorBoard, such as "evaluation-blind"."""
    state: State
    digest: str
    """Of the checkpoint's trained tensors; empty without one."""
    data: Manifest
    protocol: str

    def write(self, predicted: dict[str, Predicted]) -> None:
        """`predicted` by the evaluation's name. Raises OSError, and UserError if no sample could be used."""
        if not any(found.rows for found in predicted.values()):
            raise UserError(f"no sample of {self.data.location} could be used; see data.on_bad_sample")
        predictions = {name: found.predictions for name, found in predicted.items()}
        scores = {name: scored(own) for name, own in predictions.items()}
        used = len(next(iter(predicted.values())).rows)
        about: dict[str, Any] = {
            "epoch": self.state.epoch,
            "step": self.state.step,
            "checkpoint": self.digest,
            "data": self.data.location,
            "data_fingerprint": self.data.fingerprint,
            "protocol": self.protocol,
            "samples": self.data.samples,
            "left_out": self.data.samples - used,
            "cut": {name: cut_answers(own) for name, own in predictions.items()},
            "unread": {name: unread_choices(own) for name, own in predictions.items()},
        }
        self.run.mkdir(parents=True, exist_ok=True)
        lines = [{"evaluation": name, **row} for name, found in predicted.items() for row in found.rows]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        names = f"evaluation{self.suffix}.json", f"predictions{self.suffix}.jsonl"
        replace_file(self.run / names[1], text.encode())
        content = json.dumps({**about, **as_json(scores)}, indent=1, ensure_ascii=False) + "\n"
        replace_file(self.run / names[0], content.encode())
        self._show(predicted, scores)
        said = [
            f"{self.run.name}, epoch {self.state.epoch}, {counted(used, 'sample')} of {self.data.location}",
            table(scores),
        ]
        said += [remark for name, own in predictions.items() for remark in remarks(name, own)]
        said += [
            f"{n}: {counted(f.cut, 'context was', 'contexts were')} cut to data.max_length tokens"
            for n, f in predicted.items()
            if f.cut
        ]
        if any(line["kind"] == "caption" for line in lines):
            said += captions.missing()
        if left_out := {message for found in predicted.values() for message in found.skipped}:
            said += [
                f"{counted(self.data.samples - used, 'sample')} left out:",
                *(f"  {message}" for message in sorted(left_out)),
            ]
        print(*said, f"written: {' and '.join(names)} in {self.run}", sep="\n", flush=True)

    def _show(self, predicted: dict[str, Predicted], scores: dict[str, dict[str, Score]]) -> None:
        """In TensorBoard, at the checkpoint's step."""
        with EventFile(self.run) as board:
            for name, found in predicted.items():
                tag = f"{self.group}/{name}"
                for column, score in scores[name].items():
                    board.add_scalar(f"score/{tag}/{column}", score.value, self.state.step)
                board.add_text(tag, "\n\n".join(map(as_text, _spaced(found.rows))), self.state.step)


def as_text(row: dict[str, Any]) -> str:
    """A prediction in Markdown."""
    answers = ", ".join(map(str, row["answers"]))
    asked = f"{row['question']} {options(row['choices'])}".strip()
    cut = f" (cut at {row['cut']})" if row.get("cut") else ""
    written = f"predicted: {row['predicted']}  \nwritten: `{row['text']}`{cut}"
    return f"**{row['id']}**: {asked}  \nanswer: {answers}  \n{written}"


def _spaced(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    shown = min(SHOWN, len(rows))
    return [rows[i * len(rows) // shown] for i in range(shown)]
