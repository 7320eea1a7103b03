"""RMS norm and its backward. R rows, d columns; a program takes some rows whole.

Kernels go over a row twice, first for the sums, then for the result. Both passes load the same addresses; a row of at
most LONGEST columns is one step of each, and the compiler makes one load of the two.
"""

import torch
import triton
from triton import language as tl

from dsmemvp.backbones.kernels.arithmetic import LONGEST, narrow, tile, warps


@triton.jit(do_not_specialize=["rows"])
def _forward(
    x, weight, out, rows, eps, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    squares = tl.zeros((ROWS, 1), tl.float32)
    for start in tl.static_range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        at, there = row * D + column, (row < rows) & (column < D)
        value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        squares += tl.sum(value * value, axis=1, keep_dims=True)
    scale = tl.rsqrt(squares / D + eps)
    for start in tl.static_range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        at, there = row * D + column, (row < rows) & (column < D)
        value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        normed = narrow(value * scale, x.dtype.element_ty).to(tl.float32)
        factor = tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32)
        tl.store(out + at, narrow(factor * normed, out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["rows"])
def _backward(
    gradient, x, weight, out, rows, eps, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    squares = tl.zeros((ROWS, 1), tl.float32)
    products = tl.zeros((ROWS, 1), tl.float32)
    for start in tl.static_range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        at, there = row * D + column, (row < rows) & (column < D)
        value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        g = tl.load(gradient + at, mask=there, other=0.0).to(tl.float32)
        g *= tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32)
        squares += tl.sum(value * value, axis=1, keep_dims=True)
        products += tl.sum(g * value, axis=1, keep_dims=True)
    scale = tl.rsqrt(squares / D + eps)
    share = products / D * scale * scale
    for start in tl.static_range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        at, there = row * D + column, (row < rows) & (column < D)
        value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        g = tl.load(gradient + at, mask=there, other=0.0).to(tl.float32)
        g *= tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32)
        result = (g - value * share) * scale
        tl.store(out + at, narrow(result, out.dtype.element_ty), mask=there)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * (x / sqrt(mean(x^2) + eps)), the quotient rounded to x's dtype first, as transformers' LlamaRMSNorm.

    [.., d] and [d] -> [.., d]. Moves 2 R d numbers and the weight: the least there is."""
    x, d = x.contiguous(), x.shape[-1]
    out = torch.empty_like(x, dtype=torch.promote_types(x.dtype, weight.dtype))
    if x.numel():
        rows, (block, columns) = x.numel() // d, tile(d, LONGEST)
        _forward[(triton.cdiv(rows, block),)](
            x, weight, out, rows, eps, d, block, columns, num_warps=warps(block * columns)
        )
    return out


def rms_norm_backward(gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """To x (the weight is frozen). With r the root mean square and g = gradient * weight:
    (g - x * mean(g * x) / r^2) / r. r is computed again, not kept.

    All [.., d] -> [.., d] of x's dtype. Moves 3 R d numbers and the weight: the least there is."""
    assert gradient.shape == x.shape
    gradient, x, d = gradient.contiguous(), x.contiguous(), x.shape[-1]
    out = torch.empty_like(x)
    if x.numel():
        rows, (block, columns) = x.numel() // d, tile(d, LONGEST)
        _backward[(triton.cdiv(rows, block),)](
            gradient, x, weight, out, rows, eps, d, block, columns, num_warps=warps(block * columns)
        )
    return out
