"""Tensors that are known by shape and type and read when they are written, so that a model of any size is converted in
the memory of a few tensors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LazyTensor:
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]
    """The tensor, in memory of its own; raises UserError or OSError if its file does not hold it any more."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def changed(self, change: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...] | None = None):
        """`change` is applied when it is read; `shape` if it becomes another one."""
        return LazyTensor(shape or self.shape, self.dtype, lambda: change(self.read()))

    def to(self, dtype: torch.dtype | None):
        """Of another type; None, and whole numbers, keep theirs."""
        if dtype is None or dtype == self.dtype or not self.dtype.is_floating_point:
            return self
        return LazyTensor(self.shape, dtype, lambda: self.read().to(dtype))


Tensors = dict[str, LazyTensor]


Read = Callable[[int, int], bytearray]
"""(first byte, number of bytes) -> the bytes."""


def lazy_tensor(
    read: Read, start: int, dtype: torch.dtype, shape: Sequence[int], stride: Sequence[int] | None = None
) -> LazyTensor:
    """A tensor whose first element is at byte `start` of what is read; row by row, or with a `stride` in elements."""
    shape = tuple(shape)
    count = span(shape, stride)

    def whole() -> torch.Tensor:
        content = read(start, count * dtype.itemsize)
        flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return flat.view(shape) if stride is None else flat.as_strided(shape, tuple(stride))

    return LazyTensor(shape, dtype, whole)


def span(shape: Sequence[int], stride: Sequence[int] | None) -> int:
    """Elements from a tensor's first to its last one in memory."""
    if stride is None or not math.prod(shape):
        return math.prod(shape)
    return sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1


def concatenated(pieces: Sequence[LazyTensor], dim: int) -> LazyTensor:
    """Pieces of one tensor, cut along `dim`."""
    if len(pieces) == 1:
        return pieces[0]
    shape = list(pieces[0].shape)
    shape[dim] = sum(piece.shape[dim] for piece in pieces)
    return LazyTensor(tuple(shape), pieces[0].dtype, lambda: torch.cat([piece.read() for piece in pieces], dim))
