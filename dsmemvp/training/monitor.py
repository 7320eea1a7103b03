"""What a run says while it runs: TensorBoard and files of JSON lines in the run's folder, a bar on a terminal or lines
in a log. Only the first rank speaks.

    metrics.jsonl   the numbers of TensorBoard      skipped.jsonl   samples left out      order.jsonl   samples seen

Every line has its "step", so that a run that goes on from an earlier step drops what it is about to write again.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dsmemvp.data.durable import replace_file


class Monitor:
    def __init__(self, folder: Path, active: bool, steps: int, start: int):
        """`steps` is where the run ends, `start` where it (again) begins: what was recorded of later steps, before the
        run was cut off, is dropped."""
        self._active = active
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._folder = folder
        for path in folder.glob("*.jsonl"):
            _drop_later(path, start)
        self._files: dict[str, TextIO] = {}
        self._bar = tqdm(total=steps, initial=start, unit="step", disable=not sys.stderr.isatty())

    def say(self, text: str) -> None:
        """One line, now."""
        if self._active:
            tqdm.write(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stdout)
            sys.stdout.flush()

    def advance(self) -> None:
        if self._active:
            self._bar.update()

    def record(self, step: int, numbers: dict[str, float], line: str) -> None:
        """Numbers under their TensorBoard names, and the line for people."""
        if not self._active:
            return
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
        self.write("metrics", {"step": step, **numbers})
        if self._bar.disable:
            self.say(line)
        else:
            self._bar.set_postfix_str(line.partition("  ")[2])

    def write(self, name: str, row: dict[str, Any]) -> None:
        """A line for NAME.jsonl; `row` has the "step" it belongs to."""
        if not self._active:
            return
        if name not in self._files:
            self._files[name] = (self._folder / f"{name}.jsonl").open("a", encoding="utf-8")
        self._files[name].write(json.dumps(row, ensure_ascii=False) + "\n")
        self._files[name].flush()

    def written(self, name: str) -> list[dict[str, Any]]:
        """All lines of NAME.jsonl so far; none on other ranks than the first."""
        path = self._folder / f"{name}.jsonl" if self._active else None
        return _rows(path.read_text(encoding="utf-8")) if path and path.exists() else []

    def close(self) -> None:
        if self._active:
            self._bar.close()
            self._board.close()
            for file in self._files.values():
                file.close()


def _drop_later(path: Path, last_step: int) -> None:
    """Take out the lines of later steps than `last_step`, and half a line that a killed run may have left. Files whose
    lines have no step are not a run's record and stay as they are."""
    old = path.read_text(encoding="utf-8")
    rows = _rows(old)
    if not all("step" in row for row in rows):
        return
    new = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows if row["step"] <= last_step)
    if new != old:
        replace_file(path, new.encode())


def _rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]


def peak_memory(device: torch.device) -> float:
    """GiB: the most this process held on its GPU, or in host memory where it has none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
