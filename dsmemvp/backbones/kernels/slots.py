"""The memory slots' activation, dropout(silu(scores)), and its backward. T rows (tokens), N columns (slots).

The mask is a function of a row's key and the column's number, computed where it is used, in both directions: nothing is
written or read for it. Integers are unsigned here, so that products wrap around and shifts bring in zeros.
"""

import torch
import triton
from triton import language as tl

from dsmemvp.backbones.kernels.arithmetic import narrow, sigmoid, tile, warps

COLUMNS = 256
"""Of a block at most: its 16 rows share the mixing of column numbers, which takes 64-bit products."""


@triton.jit
def _mixed(x):
    """uint64 -> uint64, splitmix64's finaliser."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _kept(key, column, threshold):
    """[rows of the block], [columns of the block] -> [rows, columns] bool: the elements that dropout leaves."""
    key = key.to(tl.uint64, bitcast=True)[:, None]
    bits = key.to(tl.uint32) ^ _mixed(column.to(tl.uint64)).to(tl.uint32)[None, :]
    bits *= 0x2C1B3C6D
    bits ^= bits >> 15
    bits += (key >> 32).to(tl.uint32)
    bits *= 0x297A2D39
    bits ^= bits >> 16
    return (bits & 0x7FFFFFFF).to(tl.int32) >= threshold


@triton.jit(do_not_specialize=["rows", "threshold"])
def _slots(
    gradient, scores, keys, out, rows, threshold, scale, N: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Forward if `gradient` is None."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at, there = row[:, None] * N + column[None, :], (row < rows)[:, None] & (column < N)[None, :]
    x = tl.load(scores + at, mask=there, other=0.0).to(tl.float32)
    s = sigmoid(x)
    if gradient is None:
        value = x * s
    else:
        value = tl.load(gradient + at, mask=there, other=0.0).to(tl.float32) * s * (1.0 + x * (1.0 - s))
    key = tl.load(keys + row, mask=row < rows, other=0)
    value = tl.where(_kept(key, column, threshold), value * scale, 0.0)
    tl.store(out + at, narrow(value, out.dtype.element_ty), mask=there)


def slot_activation(scores: torch.Tensor, keys: torch.Tensor, p: float) -> torch.Tensor:
    """dropout(silu(scores)), with the mask of dsmemvp.dropout, bit for bit.

    scores [.., N], keys int64 with as many elements as there are rows. Moves 2 T N numbers and T keys: the least there
    is."""
    return _launched(None, scores, keys, p)


def slot_activation_backward(
    gradient: torch.Tensor, scores: torch.Tensor, keys: torch.Tensor, p: float
) -> torch.Tensor:
    """To scores, of their dtype. Moves 3 T N numbers and T keys: the least there is."""
    assert gradient.shape == scores.shape
    return _launched(gradient.contiguous(), scores, keys, p)


def _launched(gradient: torch.Tensor | None, scores: torch.Tensor, keys: torch.Tensor, p: float) -> torch.Tensor:
    scores, keys, columns = scores.contiguous(), keys.contiguous(), scores.shape[-1]
    assert 0 <= p < 1 and keys.dtype == torch.int64 and keys.numel() * columns == scores.numel()
    out = torch.empty_like(scores)
    if scores.numel():
        block, width = tile(columns, COLUMNS)
        _slots[(triton.cdiv(keys.numel(), block), triton.cdiv(columns, width))](
            gradient, scores, keys, out, keys.numel(), int(p * 2**31), 1 / (1 - p), columns, block, width,
            num_warps=warps(block * width),
        )  # fmt: skip
    return out
