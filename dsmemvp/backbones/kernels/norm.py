"""RMS norm, alone and of a sum, and its backward. R rows, d columns; a program takes some rows whole.

Kernels go over a row twice, first for the sums, then for the result. Both passes load the same addresses; a row of at
most LONGEST columns is one step of each, and the compiler makes one load of the two.
"""

import torch
import triton
from triton import language as tl

from dsmemvp.backbones.kernels.arithmetic import LONGEST, narrow, tile, warps


@triton.jit
def _input(x, residual, at, there):
    """x, or residual + x as its own dtype holds it, in float32."""
    value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + at, mask=there, other=0.0).to(tl.float32)
        value = narrow(value, x.dtype.element_ty).to(tl.float32)
    return value


@triton.jit(do_not_specialize=["rows"])
def _forward(
    x, residual, weight, summed, out, rows, eps, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    squares = tl.zeros((ROWS, 1), tl.float32)
    for start in tl.static_range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        value = _input(x, residual, row * D + column, (row < rows) & (column < D))
        squares += tl.sum(value * value, axis=1, keep_dims=True)
    scale = tl.rsqrt(squares / D + eps)
    for start in tl.static_range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        at, there = row * D + column, (row < rows) & (column < D)
        value = _input(x, residual, at, there)
        if residual is not None:
            tl.store(summed + at, value.to(summed.dtype.element_ty), mask=there)
        normed = narrow(value * scale, x.dtype.element_ty).to(tl.float32)
        factor = tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32)
        tl.store(out + at, narrow(factor * normed, out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["rows"])
def _backward(
    gradient, x, weight, add, out, rows, eps, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
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
        if add is not None:
            result += tl.load(add + at, mask=there, other=0.0).to(tl.float32)
        tl.store(out + at, narrow(result, out.dtype.element_ty), mask=there)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * (x / sqrt(mean(x^2) + eps)), the quotient rounded to x's dtype first, as transformers' LlamaRMSNorm.

    [.., d] and [d] -> [.., d]. Moves 2 R d numbers and the weight: the least there is."""
    return _normed(x, None, weight, eps)[1]


def add_rms_norm(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """residual + x, and the norm of that sum. All [.., d] and of one dtype.

    Moves 4 R d numbers (two in, two out) and the weight: the least there is; a sum and a norm apart move 5 R d."""
    assert residual.shape == x.shape and residual.dtype == x.dtype
    return _normed(x, residual.contiguous(), weight, eps)


def _normed(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    x, d = x.contiguous(), x.shape[-1]
    out = torch.empty_like(x, dtype=torch.promote_types(x.dtype, weight.dtype))
    summed = x if residual is None else torch.empty_like(x)
    if x.numel():
        rows, (block, columns) = x.numel() // d, tile(d, LONGEST)
        _forward[(triton.cdiv(rows, block),)](
            x, residual, weight, summed, out, rows, eps, d, block, columns, num_warps=warps(block * columns)
        )
    return summed, out


def rms_norm_backward(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, add: torch.Tensor | None = None
) -> torch.Tensor:
    """To x (the weight is frozen), plus `add`, which is the gradient that reaches x beside the norm. With r the root
    mean square and g = gradient * weight: (g - x * mean(g * x) / r^2) / r + add. r is computed again, not kept.

    All [.., d] -> [.., d] of x's dtype. Moves 3 R d numbers, 4 R d with `add`, and the weight: the least there is."""
    assert gradient.shape == x.shape and (add is None or add.shape == x.shape)
    gradient, x, d = gradient.contiguous(), x.contiguous(), x.shape[-1]
    out = torch.empty_like(x)
    if x.numel():
        rows, (block, columns) = x.numel() // d, tile(d, LONGEST)
        add = None if add is None else add.contiguous()
        _backward[(triton.cdiv(rows, block),)](
            gradient, x, weight, add, out, rows, eps, d, block, columns, num_warps=warps(block * columns)
        )
    return out
