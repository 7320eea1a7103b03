"""The steps of decoding: one reads the prompts, each later one a new token of every sample.

These work on tensors that stay where they are from step to step. On a GPU such a step is recorded once, as a CUDA
graph, and replayed: a large model's has over a thousand small kernels, which take longer to be started one by one than
to run.

B samples, V vocabulary.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch

from dsmemvp.backbones.key_value_cache import KeyValueCache
from dsmemvp.data.batch import Batch
from dsmemvp.model import Decoding

log = logging.getLogger(__name__)
Forward = Callable[..., Any]
Replay = Callable[[], object]
Record = Callable[[Callable[[], torch.Tensor]], tuple[Replay, torch.Tensor]]
"""A function -> what repeats its work on the GPU, none of its Python, and the tensor that its result is in each time.
The function may be run meanwhile."""
UNRECORDED = 3
"""Steps before the first recording, which costs as much as two: most answers of one word are done by then."""


class Steps:
    """Of one batch of prompts."""

    def __init__(self, run: Forward, prompts: Batch, decoding: Decoding, record: Record | None = None):
        """`run(batch, decoding)` is the model's forward, or its engine's. `record`: None never records."""
        self._run, self._decoding, self._record = run, decoding, record
        self._batch = prompts
        self._done = -1
        """Steps since the prompts were read."""
        self._replay: Replay | None = None
        self._logits_BV = torch.empty(0)

    def __call__(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """-> logits [B, V], which the next step may overwrite. The tokens of the first step are not looked at: it reads
        the prompts."""
        cache = self._decoding.cache
        self._done += 1
        if self._done == 0:
            logits_BV, self._decoding.state = self._run(self._batch, self._decoding)
            self._batch = next_tokens(self._batch, cache)
            return logits_BV
        if cache.make_room():
            self._replay = None  # it knows the tensors before
        self._batch.tokens.copy_(tokens_B)
        self._batch.positions.copy_(cache.lengths_B)
        if self._record is not None and self._replay is None and self._done > UNRECORDED:
            self._begin(self._record)
        if self._replay is None:
            return self._forward()
        self._replay()
        cache.lengths = [length + 1 for length in cache.lengths]  # what is in the recording does the same on the GPU
        return self._logits_BV

    def _forward(self) -> torch.Tensor:
        before = self._decoding.state
        logits_BV, self._decoding.state = self._run(self._batch, self._decoding)
        if self._decoding.state is not before:
            self._record = None  # a replay would go on reading the state before
        return logits_BV

    def _begin(self, record: Record) -> None:
        """To record runs the step or does not; the cache is then as it was."""
        cache = self._decoding.cache
        lengths, lengths_B = cache.lengths, cache.lengths_B.clone()

        def forward() -> torch.Tensor:
            # run twice: the second must not find the cache full and replace its tensors within the recording
            cache.lengths = lengths
            return self._forward()

        try:
            self._replay, self._logits_BV = record(forward)
        except RuntimeError as error:  # of a method that waits for the GPU within a step
            log.warning("steps of decoding are not recorded as a CUDA graph: %s", str(error).partition("\n")[0])
            self._record = None
        cache.lengths = lengths
        cache.lengths_B.copy_(lengths_B)


def next_tokens(before: Batch, cache: KeyValueCache) -> Batch:
    """One new token of every sample, without images and reserved places; each is its own memory group. Tokens and
    positions are still to be written."""
    B, device = len(cache.lengths), before.tokens.device
    each = torch.arange(B, device=device)
    return Batch(
        tokens=torch.zeros_like(each),
        cu_seqlens=torch.arange(B + 1, dtype=torch.int32, device=device),
        positions=torch.zeros_like(each),
        spans=torch.zeros(B, 2, 2, dtype=torch.long, device=device),
        places={name: place[:0] for name, place in before.places.items()},
        supervised=each,
        targets=torch.zeros_like(each),
        images=before.images[:0],
        image_of=each,
        lengths=(1,) * B,
        image_rows=tuple(range(B)),
        supervised_counts=(1,) * B,
        sample_ids=before.sample_ids,
        image_ids=before.image_ids[:0],
    )


def cuda_graph(forward: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
    """A `Record`."""
    aside, current = torch.cuda.Stream(), torch.cuda.current_stream()
    aside.wait_stream(current)
    with torch.cuda.stream(aside):
        forward()  # libraries take their workspaces
    current.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # other threads may copy or pin memory meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        logits_BV = forward()
    return graph.replay, logits_BV
