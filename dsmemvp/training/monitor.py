"""What a run says while it runs: files of JSON lines in the run's folder, TensorBoard and other loggers
(training.loggers), a bar on a terminal or lines in a log. Only the first rank speaks.

    metrics.jsonl   the numbers of the loggers      skipped.jsonl   samples left out      order.jsonl   samples seen

Every line begins with its "step", so that a run that resumes at an earlier step drops what it is about to write again
(record.py). A full disk does not end a run: what could not be written is written as soon as there is room.
"""

import json
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import indent
from typing import Any, BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from dsmemvp.atomic_files import replace_file
from dsmemvp.log import log
from dsmemvp.training.event_file import EventFile
from dsmemvp.training.loggers import open_loggers, without_secrets
from dsmemvp.training.record import count_rows, rows_of, wind_back

RECORDS = ("metrics", "skipped", "order")


class Monitor:
    def __init__(self, folder: Path, active: bool, steps: int, start: int, loggers: Sequence[str] = ("tensorboard",)):
        """`steps` is where the run ends, `start` where it (again) begins: what was recorded of later steps, before the
        run was cut off, is dropped."""
        self._active = active
        self.stage = ""
        """What is recorded is of this stage, and apart from the others in the loggers; empty in a run of one."""
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._unwritable: set[str] = set()
        self._board = EventFile(folder, first_step=start + 1) if "tensorboard" in loggers else None
        for name in RECORDS:
            wind_back(self._path(name), start)
        self._files: dict[str, BinaryIO] = {}
        self._unwritten: dict[str, bytes] = {}
        """What a full disk has not taken yet. Files' own buffers lose what goes beyond their size."""
        self._loggers = open_loggers(loggers, folder, self.say)
        self._bar = tqdm(total=steps, initial=start, unit="step", disable=not sys.stderr.isatty())

    def say(self, text: str) -> None:
        """One line, now."""
        if self._active:
            log.info(text)

    def advance(self) -> None:
        if self._active:
            self._bar.update()

    def record(self, step: int, numbers: dict[str, float], line: str) -> None:
        """Numbers under their names in the loggers, and the line for people."""
        if not self._active:
            return
        if numbers:
            self.write("metrics", {"step": step, **({"stage": self.stage} if self.stage else {}), **numbers})
            self._show(step, {self._apart(name): value for name, value in numbers.items()})
        if self._bar.disable:
            self.say(line)
        else:
            self._bar.set_postfix_str(line.partition("  ")[2])

    def _apart(self, name: str) -> str:
        """A number's name with the stage in it, if there are several."""
        group, _, rest = name.partition("/")
        return f"{group}/{self.stage}/{rest}" if self.stage else name

    def _show(self, step: int, numbers: dict[str, float]) -> None:
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
            self._flush_board()
        for logger in self._loggers:
            logger.call("numbers", numbers, step)

    def show_recipe(self, values: dict[str, Any], text: str, step: int) -> None:
        """In the loggers; `text` is the same as YAML."""
        if not self._active:
            return
        if self._board is not None:
            self._board.add_text("recipe", indent(text, "    "), step)  # Markdown's mark of what is not to be set
            self._flush_board()
        for logger in self._loggers:
            logger.call("recipe", without_secrets(values))

    def show_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """In the loggers; [height, width, 3] uint8."""
        if not self._active:
            return
        if self._board is not None:
            self._board.add_image(name, pixels, step)
            self._flush_board()
        for logger in self._loggers:
            logger.call("image", name, pixels, step)

    def write(self, name: str, row: dict[str, Any]) -> None:
        """A line for NAME.jsonl, one of RECORDS; `row` begins with the "step" it belongs to."""
        if not self._active:
            return
        line = json.dumps(row, ensure_ascii=False) + "\n"
        self._unwritten[name] = self._unwritten.get(name, b"") + line.encode()
        self._flush(name)

    def _flush(self, name: str) -> None:
        with self._complaining(name):
            if name not in self._files:
                self._files[name] = self._path(name).open("ab", buffering=0)
            while rest := self._unwritten[name]:
                self._unwritten[name] = rest[self._files[name].write(rest) :]

    def written(self, name: str) -> Iterator[dict[str, Any]]:
        """The lines of NAME.jsonl so far, one at a time; none on other ranks than the first."""
        return rows_of(self._path(name)) if self._active else iter(())

    def recorded(self, step: int) -> set[str]:
        """The names of the numbers that metrics.jsonl has of a step; none on other ranks than the first."""
        rows = (row for row in self.written("metrics") if row["step"] == step)
        return {name for row in rows for name in row if name not in ("step", "stage")}

    def count(self, name: str) -> int:
        """How many lines of NAME.jsonl there are so far; 0 on other ranks than the first."""
        return count_rows(self._path(name)) if self._active else 0

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.jsonl"

    def close(self) -> None:
        if not self._active:
            return
        self._bar.close()
        if self._board is not None:
            with self._complaining("tensorboard"):
                self._board.close()
        for name in self._unwritten:
            self._flush(name)
        for name, file in self._files.items():
            with self._complaining(name):
                file.close()
        for logger in self._loggers:
            logger.close()

    def _flush_board(self) -> None:
        if self._board is not None:
            with self._complaining("tensorboard"):
                self._board.flush()

    @contextmanager
    def _complaining(self, name: str) -> Iterator[None]:
        """An error of the file system is said once, and again only after it was gone."""
        try:
            yield
        except OSError as error:
            if name not in self._unwritable:
                self.say(f"{name} cannot be written, and training continues: {error}")
            self._unwritable.add(name)
        else:
            self._unwritable.discard(name)


def peak_memory(device: torch.device) -> float:
    """GiB: the most this process held on its GPU, or in host memory if it has none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write_json(path: Path, content: dict[str, Any]) -> None:
    replace_file(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
