"""Flat partitions of all ranks -> the first rank's memory: what training waits for at a checkpoint.

Ranks send the partitions on which the optimizer works as they are, from host memory to host memory over gloo, straight
into buffers that are kept for the next time; tensors are cut out of them later, beside the next steps. Sending from one
rank to one is faster here than a gather or an all-reduce, which pass through buffers of their own.

Suffixes: R ranks, N elements of a partition.
"""

from collections.abc import Sequence

import torch
from torch import distributed

from dsmemvp.distributed.ranks import Ranks


class Gathering:
    """All ranks call the same methods together, with partitions of the same sizes, float32 and contiguous."""

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._held: list[torch.Tensor] = []

    def to_first(self, flats_N: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """On the first rank the partitions of all ranks: [R, N] on the CPU for each of `flats_N`, valid until the next
        call. Elsewhere nothing."""
        ranks = self._ranks
        if not ranks.first:
            for own_N in self._on_host(flats_N):
                distributed.send(own_N, 0, group=ranks.control)
            return []
        held_RN = self._buffers(ranks.world, flats_N)
        coming = [
            distributed.irecv(row_N, rank, group=ranks.control)
            for partitions_RN in held_RN
            for rank, row_N in enumerate(partitions_RN[1:], 1)
        ]
        for partitions_RN, flat_N in zip(held_RN, flats_N, strict=True):
            partitions_RN[0].copy_(flat_N)
        for work in coming:
            assert work is not None  # it is None for ranks outside the group
            work.wait()
        return held_RN

    def to_all(self, flats_N: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """As `to_first`, but on every rank."""
        ranks = self._ranks
        held_RN = self.to_first(flats_N) or [torch.empty(ranks.world, flat_N.numel()) for flat_N in flats_N]
        for partitions_RN in held_RN if ranks.world > 1 else []:
            distributed.broadcast(partitions_RN, 0, group=ranks.control)
        return held_RN

    def _on_host(self, flats_N: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if self._ranks.device.type == "cpu":
            return list(flats_N)
        return [row_1N[0].copy_(flat_N) for row_1N, flat_N in zip(self._buffers(1, flats_N), flats_N, strict=True)]

    def _buffers(self, rows: int, flats_N: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The same ones each time, pinned if values come from a GPU."""
        if not self._held:
            pinned = self._ranks.device.type == "cuda"
            self._held = [torch.empty(rows, flat_N.numel(), pin_memory=pinned) for flat_N in flats_N]
        return self._held
