"""What TensorBoard shows of the memory beside the scores: a few fixed samples, looked into (inspection/board.py)."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from dsmemvp.data.encoder import Encoder
from dsmemvp.data.manifest import Manifest
from dsmemvp.data.sample import BadSample, Sample, SampleError, read_sample
from dsmemvp.data.stream import read_each
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.inspection.board import BoardReport, board_report
from dsmemvp.models.joined import VisualLanguageModel
from dsmemvp.training.ranks import Ranks

SHOWN = 4
"""Samples: the first with a picture, the same ones at every step."""
SEARCHED = 200
"""Samples among which they are looked for."""


def show_memory(
    run: Path,
    step: int,
    ranks: Ranks,
    data: Manifest,
    encoder: Encoder,
    tokenizer: Tokenizer,
    model: VisualLanguageModel,
    forward: Callable[..., Any],
) -> None:
    """Called on all ranks; two forwards. What cannot be written is said and not shown. Raises ValueError or OSError for
    data that cannot be read."""
    samples = ranks.together(lambda: _with_pictures(data, encoder, tokenizer))
    report = board_report(model, forward, encoder, tokenizer, samples)
    if ranks.first:
        _write(report, run, step)


def _with_pictures(data: Manifest, encoder: Encoder, tokenizer: Tokenizer) -> list[Sample]:
    """Without those that cannot be used: the evaluation has told of them, or ended at them."""
    found: list[Sample] = []
    for entry in islice(read_each([data]), SEARCHED):
        try:
            if isinstance(entry, BadSample):
                raise entry.error
            sample = read_sample(entry)
            if sample.image is not None:
                encoder.item(tokenizer, sample)
                found.append(sample)
        except SampleError:
            continue
        if len(found) == SHOWN:
            break
    return found


def _write(report: BoardReport, run: Path, step: int) -> None:
    try:
        with SummaryWriter(str(run / "tensorboard")) as board:
            report.write(board, step)
    except OSError as error:
        print(f"TensorBoard's pictures of the memory cannot be written: {error}", flush=True)
