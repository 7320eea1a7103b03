"""What an evaluation leaves behind: files in the run's folder, points and texts in TensorBoard, the table."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from dsmemvp.data.durable import replace_file
from dsmemvp.evaluation import captions
from dsmemvp.evaluation.predictions import Predicted
from dsmemvp.evaluation.scores import as_json, scored, table
from dsmemvp.training.checkpoint import State

SHOWN = 4
"""Predictions whose texts are shown in TensorBoard, evenly spaced over the data: the same ones at every step."""


@dataclass(frozen=True)
class Report:
    run: Path
    suffix: str
    """Of the files, such as "-blind"."""
    state: State
    location: str
    """Of the data."""
    samples: int
    """In the data."""
    protocol: str

    def write(self, predicted: dict[str, Predicted]) -> None:
        """`predicted` by the evaluation's name. Raises OSError."""
        rows = {name: found.rows for name, found in predicted.items()}
        scores = {name: scored(found.predictions) for name, found in predicted.items()}
        used = len(next(iter(rows.values())))
        about: dict[str, Any] = {"epoch": self.state.epoch, "step": self.state.step, "data": self.location}
        about |= {"protocol": self.protocol, "samples": self.samples, "left_out": self.samples - used}
        self.run.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"evaluation": name, **row}) + "\n" for name, own in rows.items() for row in own]
        replace_file(self.run / f"predictions{self.suffix}.jsonl", "".join(lines).encode())
        content = json.dumps({**about, **as_json(scores)}, indent=1, ensure_ascii=False) + "\n"
        replace_file(self.run / f"evaluation{self.suffix}.json", content.encode())
        self._show(rows, {name: {column: s.value for column, s in own.items()} for name, own in scores.items()})
        print(f"{self.run.name}, epoch {self.state.epoch}, {used} samples of {self.location}")
        print(table(scores), flush=True)
        if any(row["kind"] == "caption" for own in rows.values() for row in own):
            for line in captions.missing():
                print(line, flush=True)
        if left_out := {message for found in predicted.values() for message in found.skipped}:
            print(f"{self.samples - used} samples left out:", *sorted(left_out), sep="\n  ", flush=True)

    def _show(self, rows: dict[str, list[dict[str, Any]]], scores: dict[str, dict[str, float]]) -> None:
        """In TensorBoard, at the checkpoint's step."""
        with SummaryWriter(str(self.run / "tensorboard")) as board:
            for name, own in rows.items():
                for column, value in scores[name].items():
                    board.add_scalar(f"evaluation{self.suffix}/{name}/{column}", value, self.state.step)
                text = "\n\n".join(map(as_text, _spaced(own)))
                board.add_text(f"evaluation{self.suffix}/{name}", text, self.state.step)


def as_text(row: dict[str, Any]) -> str:
    """A prediction in Markdown."""
    answers = ", ".join(map(str, row["answers"]))
    return (
        f"**{row['id']}**: {row['question']}  \nanswer: {answers}  \npredicted: {row['predicted']}"
        f"  \nwritten: `{row['text']}`"
    )


def _spaced(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    shown = min(SHOWN, len(rows))
    return [rows[i * len(rows) // shown] for i in range(shown)]
