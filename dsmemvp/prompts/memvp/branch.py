"""The memory branch of one layer and its gradient.

One memory serves all layers, so its gradient is a sum over 32 or 40 of them. Each layer adds its part to one float32
sum in place (`Sums`), and `hand_out` gives the whole to autograd when all layers have. Left to autograd, every layer
would make float32 tensors of the memory's size, and more time would pass in adding these up than in the branch's
products.

The branch keeps its input alone; its scores are computed again in the backward.

With separable scores (`scores: separable`) `key` is silu(K), whose gradient autograd takes once for all layers.
T tokens in the pack, G groups of tokens with one memory, N slots, d width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from dsmemvp.backbones.fused import form_of
from dsmemvp.dropout import Dropout

TENTH = 10
"""One in so many scores is dropped."""


@dataclass(frozen=True)
class LayerMemory:
    """What every layer of the decoder reads."""

    key_GNd: torch.Tensor
    value_GNd: torch.Tensor
    sizes: Sequence[int]
    """Of each group, its tokens."""
    scale: float
    """Of the branch's output."""
    token: torch.Tensor | None = None
    """As `hand_out` has given it; without, the memory gets no gradient."""
    sums: Sequence[torch.Tensor] = ()
    """As `hand_out` was given them."""
    separable: bool = False
    """Whether `key_GNd` is silu(K), which silu(x) is multiplied with."""


def hand_out(key_GNd: torch.Tensor, value_GNd: torch.Tensor, sums: Sequence[torch.Tensor]) -> torch.Tensor:
    """-> a scalar that every layer's branch takes. Its gradient comes when all have added to `sums`, float32 tensors of
    the memory's shapes, which then are the gradients of key and value."""
    return _HandOut.apply(key_GNd, value_GNd, *sums)


def memory_branch(x_1Td: torch.Tensor, memory: LayerMemory, dropout: Dropout | None, p: float) -> torch.Tensor:
    """scale * dropout(silu(x K^T)) V, [1, T, d], or scale * without_lowest(silu(x) silu(K)^T) V, without dropout; group
    g has `sizes[g]` of the tokens."""
    keys = dropout.keys if dropout is not None and p else None
    if memory.token is None or not torch.is_grad_enabled():
        return _read(x_1Td, memory, keys, p) * memory.scale
    return _Branch.apply(x_1Td, memory.token, memory.key_GNd, memory.value_GNd, keys, memory, p)


class _HandOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, key: torch.Tensor, value: torch.Tensor, *sums: torch.Tensor) -> torch.Tensor:
        ctx.sums = sums
        return key.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *ctx.sums, None, None


class _Branch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, token, key, value, keys, memory: LayerMemory, p) -> torch.Tensor:
        ctx.save_for_backward(x, key, value, keys)
        ctx.memory, ctx.p = memory, p
        return _read(x, memory, keys, p).mul_(memory.scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, key, value, keys = ctx.saved_tensors
        sizes, (key_sum, value_sum), separable = ctx.memory.sizes, ctx.memory.sums, ctx.memory.separable
        multiplied = F.silu(x) if separable else x
        scores = grouped_product(multiplied, key.transpose(1, 2), sizes)
        gradient = gradient * ctx.memory.scale
        lowest = _lowest(scores) if separable else None
        active = _active(scores, keys, ctx.p) if lowest is None else scores.masked_fill(lowest, 0)
        _add_products(value_sum, active, gradient, sizes)
        to_active = grouped_product(gradient, value.transpose(1, 2), sizes)
        if lowest is None:
            to_scores = _active_backward(to_active, scores, keys, ctx.p)
        else:
            to_scores = to_active.masked_fill(lowest, 0)
        _add_products(key_sum, to_scores, multiplied, sizes)
        to_x = grouped_product(to_scores, key, sizes) if ctx.needs_input_grad[0] else None
        if separable and to_x is not None:
            to_x = torch.ops.aten.silu_backward(to_x, x)
        return to_x, gradient.new_zeros(()), *[None] * 5


def _read(x_1Td: torch.Tensor, memory: LayerMemory, keys: torch.Tensor | None, p: float) -> torch.Tensor:
    """[1, T, d], without the scale."""
    multiplied = F.silu(x_1Td) if memory.separable else x_1Td
    scores = grouped_product(multiplied, memory.key_GNd.transpose(1, 2), memory.sizes)
    active = without_lowest(scores) if memory.separable else _active(scores, keys, p)
    return grouped_product(active, memory.value_GNd, memory.sizes)


def without_lowest(scores: torch.Tensor) -> torch.Tensor:
    """Of each token's scores, [..., N], the N // 10 lowest are zero (ADEM-VL, arXiv 2410.17779), and those that equal
    the largest of these."""
    return scores.masked_fill(_lowest(scores), 0)


def _lowest(scores: torch.Tensor) -> torch.Tensor:
    """Which they are; the same for the same scores, in the forward and in the backward."""
    number = scores.shape[-1] // TENTH
    if not number:
        return torch.zeros_like(scores, dtype=torch.bool)
    return scores <= scores.topk(number, dim=-1, largest=False).values.amax(-1, keepdim=True)


def _active(scores: torch.Tensor, keys: torch.Tensor | None, p: float) -> torch.Tensor:
    return F.silu(scores) if keys is None else form_of(scores).slot_activation(scores, keys, p)


def _active_backward(gradient: torch.Tensor, scores: torch.Tensor, keys: torch.Tensor | None, p: float) -> torch.Tensor:
    if keys is None:
        return torch.ops.aten.silu_backward(gradient, scores)
    return form_of(scores).slot_activation_backward(gradient, scores, keys, p)


def grouped_product(x_1Ta: torch.Tensor, matrix_Gab: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """[1, T, b]: the tokens of each group times its own matrix; no gradient."""
    if len(set(sizes)) == 1:  # one group, or one new token of each sample
        grouped = x_1Ta.view(len(sizes), sizes[0], x_1Ta.shape[-1])
        return (grouped @ matrix_Gab).flatten(0, 1)[None]
    out_Tb = x_1Ta.new_empty(x_1Ta.shape[1], matrix_Gab.shape[-1])
    parts = zip(x_1Ta[0].split(list(sizes)), matrix_Gab.unbind(0), out_Tb.split(list(sizes)), strict=True)
    for part, matrix, out in parts:
        torch.mm(part, matrix, out=out)
    return out_Tb[None]


def _add_products(sum_GNd: torch.Tensor, left_1TN: torch.Tensor, right_1Td: torch.Tensor, sizes: Sequence[int]) -> None:
    """Add the product over each group's tokens to its sum: computed in the compute type, added in float32."""
    rows = (left_1TN[0].split(list(sizes)), right_1Td[0].split(list(sizes)))
    for total, left, right in zip(sum_GNd, *rows, strict=True):
        total.add_(left.T @ right)
