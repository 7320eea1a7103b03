"""TensorBoard's events of a run, in RUN/events.out.tfevents.*, so that TensorBoard calls the run by its folder's name.

torch's SummaryWriter writes in a thread: a full disk ends it with a traceback, once for every further attempt, and
what it had taken is lost. Here torch makes the events and TensorBoard frames them, but the caller's thread writes them;
what a disk does not take waits in memory, and goes first as soon as there is room.
"""

import io
import itertools
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

_numbers = itertools.count()
"""Of the files that this process writes."""


class EventFile:
    """The add_... methods do not write; flush does, and the end of a `with`."""

    def __init__(self, run: Path, first_step: int | None = None):
        """`first_step`: what TensorBoard has from earlier files of this and later steps, it is to forget."""
        # TensorBoard reads a run's files in the order of their names
        about = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers):06d}"
        self._path = run / f"events.out.tfevents.{about}"
        self._file: BinaryIO | None = None
        self._waiting = b""
        """Framed events that are not in the file yet."""
        self._add(file_version="brain.Event:2", step=first_step)
        if first_step is not None:
            self._add(session_log=SessionLog(status=SessionLog.START), step=first_step)

    def add_summary(self, ready: Summary) -> None:
        """One that a plugin of TensorBoard has made."""
        self._add(summary=ready)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._add(summary=summary.scalar(name, value), step=step)

    def add_text(self, name: str, text: str, step: int) -> None:
        """`text` is Markdown."""
        self._add(summary=summary.text(name, text), step=step)

    def add_histogram(self, name: str, values: torch.Tensor, step: int) -> None:
        """Of the finite values; a model that has diverged may have none, and then nothing is written."""
        finite = values[values.isfinite()].numpy()
        if finite.size:
            self._add(summary=summary.histogram(name, finite, bins="auto", max_bins=512), step=step)

    def add_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """`pixels` is [height, width, 3] uint8."""
        self._add(summary=summary.image(name, pixels, dataformats="HWC"), step=step)

    def flush(self) -> None:
        """Raises OSError, and may then be called again."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def close(self) -> None:
        """Raises OSError."""
        try:
            self.flush()
        finally:
            if self._file is not None:
                self._file.close()

    def __enter__(self) -> "EventFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _add(self, **content: Any) -> None:
        framed = io.BytesIO()
        RecordWriter(framed).write(Event(wall_time=time.time(), **content).SerializeToString())
        self._waiting += framed.getvalue()
