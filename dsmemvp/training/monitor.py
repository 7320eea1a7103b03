"""What a run says while it runs: TensorBoard and metrics.jsonl in the run's folder, a bar on a terminal or lines in a
log. Only the first rank speaks."""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


class Monitor:
    def __init__(self, folder: Path, active: bool, steps: int, start: int):
        """`steps` is where the run ends, `start` where it (again) begins: what was recorded of later steps, before the
        run was cut off, is dropped."""
        self._active = active
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._lines = _reopen(folder / "metrics.jsonl", start)
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
        self._lines.write(json.dumps({"step": step, **numbers}) + "\n")
        self._lines.flush()
        if self._bar.disable:
            self.say(line)
        else:
            self._bar.set_postfix_str(line.partition("  ")[2])

    def close(self) -> None:
        if self._active:
            self._bar.close()
            self._board.close()
            self._lines.close()


def _reopen(path: Path, last_step: int) -> TextIO:
    """The file of JSON lines, open to append after `last_step`."""
    old = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    # a run that was killed may have left half a line
    kept = [line for line in old if line.endswith("}\n") and json.loads(line)["step"] <= last_step]
    if kept != old:
        partial = path.with_name(f"partial-{path.name}")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(path)
    return path.open("a", encoding="utf-8")


def peak_memory(device: torch.device) -> float:
    """GiB: the most this process held on its GPU, or in host memory where it has none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
