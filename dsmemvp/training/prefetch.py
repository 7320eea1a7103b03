"""Batches on the device before their step: copied from pinned memory on a stream of their own while the step before
computes. On a CPU they are where they belong already."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch

from dsmemvp.data.batch import Batch, MicroBatch

Item = TypeVar("Item")
Started = TypeVar("Started")
Finished = TypeVar("Finished")


def on_device(steps: Iterator[list[MicroBatch]], device: torch.device) -> Iterator[list[MicroBatch]]:
    """The micro-batches of each step. On a GPU one step more than is computed is held."""
    if device.type != "cuda":
        return steps
    copies = Copies(device)
    return one_ahead(steps, copies.start, copies.finish)


def one_ahead(
    source: Iterator[Item], start: Callable[[Item], Started], finish: Callable[[Started], Finished]
) -> Iterator[Finished]:
    """`finish(start(item))` of every item, with the next one started before. An error of `source` is raised when all
    items before it have been given."""
    try:
        held = start(next(source))
    except StopIteration:
        return
    while True:
        error: Exception | None = None
        try:
            following = start(next(source))
        except Exception as caught:  # also that there is none
            error = caught
        yield finish(held)
        if isinstance(error, StopIteration):
            return
        if error is not None:
            raise error
        held = following


class Moving(NamedTuple):
    step: list[MicroBatch]
    copied: torch.cuda.Event


class Copies:
    """Steps on their way to a GPU."""

    def __init__(self, device: torch.device):
        self._device, self._stream = device, torch.cuda.Stream(device)

    def start(self, step: list[MicroBatch]) -> Moving:
        with torch.cuda.stream(self._stream):
            # pinned memory is not used anew before the copy from it has been made
            moved = [replace(micro, batch=micro.batch.to(self._device)) for micro in step]
            return Moving(moved, self._stream.record_event())

    def finish(self, started: Moving) -> list[MicroBatch]:
        """What computes from here on waits for the copies; the host does not."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(started.copied)
        for micro in started.step:
            for tensor in _tensors(micro.batch):
                tensor.record_stream(computing)  # else a later copy may take its memory while it is still being read
        return started.step


def _tensors(batch: Batch) -> list[torch.Tensor]:
    """All that `to` moves."""
    found: list[torch.Tensor] = []

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    batch.map(kept)
    return found
