"""Rotary positions. T tokens, H heads, D head width; a program takes some (token, head) pairs, heads first, so that
those of one token read cos and sin from the cache."""

import torch
import triton
from triton import language as tl

from dsmemvp.backbones.kernels.arithmetic import narrow, tile, warps


@triton.jit(do_not_specialize=["pairs"])
def _rotate(
    x, cos, sin, out, pairs, x_token, x_head, x_column, out_token, out_head, out_column,
    HEADS: tl.constexpr, HALF: tl.constexpr, INVERSE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    there = (pair < pairs) & (column < HALF)
    token, head = (pair // HEADS).to(tl.int64), (pair % HEADS).to(tl.int64)
    turn = tl.load(sin + token * (2 * HALF) + column, mask=there, other=0.0).to(tl.float32)
    keep = tl.load(cos + token * (2 * HALF) + column, mask=there, other=0.0).to(tl.float32)
    if INVERSE:
        turn = -turn
    at = x + token * x_token + head * x_head + column * x_column
    first = tl.load(at, mask=there, other=0.0).to(tl.float32)
    second = tl.load(at + HALF * x_column, mask=there, other=0.0).to(tl.float32)
    at = out + token * out_token + head * out_head + column * out_column
    tl.store(at, narrow(first * keep - second * turn, out.dtype.element_ty), mask=there)
    tl.store(at + HALF * out_column, narrow(second * keep + first * turn, out.dtype.element_ty), mask=there)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool = False) -> torch.Tensor:
    """transformers' apply_rotary_pos_emb, of one tensor: halves of a head are paired. `inverse` turns back, which is
    also the gradient's way.

    x [1, H, T, D] or [T, H, D], of any strides; cos and sin [1, T, D], whose halves are equal: the first is read.
    -> as x, and in memory laid out as x, whose gaps are closed. Moves 2 T H D numbers and T D of cos and sin: the least
    there is."""
    assert x.shape[-1] % 2 == 0 and cos.shape == sin.shape
    cos, sin = cos.contiguous(), sin.contiguous()
    out = torch.empty_like(x)
    if not x.numel():
        return out
    x_THD, out_THD = (t[0].transpose(0, 1) if t.dim() == 4 else t for t in (x, out))
    tokens, heads, width = x_THD.shape
    block, columns = tile(width // 2, width)
    _rotate[(triton.cdiv(tokens * heads, block),)](
        x_THD, cos, sin, out_THD, tokens * heads, *x_THD.stride(), *out_THD.stride(),
        heads, width // 2, inverse, block, columns, num_warps=warps(block * columns),
    )  # fmt: skip
    return out
