"""Attention over packed samples: causal in each sample, and no sample sees another's tokens.

Queries, keys and values of all samples lie in one row, [1, heads, T, D], and a `Packing` says where each sample lies.
On CUDA that is one call of flash attention for variable lengths; on CPUs flash attention is called sample by sample,
so that a sample's numbers are exactly those it has alone. Both give the logarithms of the softmax's sums, with which
the backward needs no second forward, so that either can be kept or computed again by itself (recompute.py).

T tokens in the pack, B samples, H heads, K key/value heads, D head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from dsmemvp.backbones import attention_products
from dsmemvp.backbones.key_value_cache import KeyValueCache

aten = torch.ops.aten


@dataclass(frozen=True)
class Packing:
    """Where the samples lie in one row of T tokens."""

    cu_seqlens: torch.Tensor
    """[B + 1] int32"""
    lengths: tuple[int, ...]
    """[B], on the host"""
    cache: KeyValueCache | None = None
    hidden: torch.Tensor | None = None
    """[T] bool: places that this block reads at their own place only, since a method hides them; None: none."""

    @property
    def longest(self) -> int:
        return max(self.lengths)


def attend(
    query_1HTD: torch.Tensor,
    key_1KTD: torch.Tensor,
    value_1KTD: torch.Tensor,
    packing: Packing,
    scale: float,
    layer: int = 0,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """-> mixed values [1, T, H, D], and the logarithms of the softmax's sums, which only the backward reads. In
    decoding (`packing.cache`) the first forward fills the cache at `layer`, and a later one, which holds a new token of
    each sample, reads it.

    No prompt and no training sample is longer than a sliding window (families.check_window), but a text that is being
    written may become so: then a new token sees the last `window` tokens."""
    cache = packing.cache
    if cache is not None and cache.lengths:
        return _decode(query_1HTD, *cache.append(layer, key_1KTD, value_1KTD), cache.seen(layer, window), scale)
    if cache is not None:
        cache.fill(layer, key_1KTD, value_1KTD, packing.lengths, packing.hidden)
    return _Attended.apply(query_1HTD, key_1KTD, value_1KTD, packing, scale)


def _decode(
    query_1HBD: torch.Tensor, keys_BKCD: torch.Tensor, values_BKCD: torch.Tensor, seen_B11C: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    # the queries of a group read the same keys: as rows of one head they need no copies of these
    query_BKGD = query_1HBD[0].transpose(0, 1).unflatten(1, (keys_BKCD.shape[1], -1))
    out_BKGD = F.scaled_dot_product_attention(query_BKGD, keys_BKCD, values_BKCD, attn_mask=seen_B11C, scale=scale)
    return out_BKGD.flatten(1, 2)[None], query_1HBD.new_empty(0)


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, key, value, packing: Packing, scale: float):
        ctx.packing, ctx.scale = packing, scale
        mixed, log_sums = _kernel(query, packing).forward(query, key, value, packing, scale)
        ctx.save_for_backward(query, key, value, mixed, log_sums)
        ctx.mark_non_differentiable(log_sums)
        return mixed, log_sums

    @staticmethod
    def backward(ctx: Any, gradient, _):
        saved = ctx.saved_tensors  # once: what was not kept is computed at every access
        backward = _kernel(saved[0], ctx.packing).backward
        return *backward(gradient, *saved, ctx.packing, ctx.scale), None, None


class _OnCpu:
    """Flash attention for CPUs, sample by sample."""

    @staticmethod
    def forward(query, key, value, packing: Packing, scale: float):
        mixed = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        wide = torch.promote_types(query.dtype, torch.float32)
        log_sums = query.new_empty(1, query.shape[2], query.shape[1], dtype=wide)
        parts = _parts(packing, query, *_repeated(query, key, value), mixed.transpose(1, 2), log_sums.transpose(1, 2))
        for q, k, v, own_mixed, own_sums, mask in zip(*parts, _masks(packing, query), strict=True):
            out, sums = aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, mask is None, attn_mask=mask, scale=scale
            )
            own_mixed.copy_(out)
            own_sums.copy_(sums)
        return mixed, log_sums

    @staticmethod
    def backward(gradient, query, key, value, mixed, log_sums, packing: Packing, scale: float):
        rows = (gradient.transpose(1, 2), query, *_repeated(query, key, value), mixed.transpose(1, 2))
        parts = zip(*_parts(packing, *rows, log_sums.transpose(1, 2)), _masks(packing, query), strict=True)
        found = [_sample_backward(g, q, k, v, out, sums, mask, scale) for g, q, k, v, out, sums, mask in parts]
        dq, dk, dv = (torch.cat(samples, dim=2) for samples in zip(*found, strict=True))
        return dq, _summed(dk, key), _summed(dv, value)


def _sample_backward(gradient, query, key, value, mixed, log_sums, mask, scale: float):
    if mask is None and attention_products.serves(query):
        return attention_products.gradients(gradient, query, key, value, mixed, log_sums, scale, causal=True)
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient, query, key, value, mixed, log_sums, 0.0, mask is None, attn_mask=mask, scale=scale
    )


class _OnCuda:
    """Flash attention for variable lengths, in 16 bits and without hidden places."""

    @staticmethod
    def forward(query, key, value, packing: Packing, scale: float):
        q, k, v = (t[0].transpose(0, 1) for t in (query, *_repeated(query, key, value)))
        ends, longest = packing.cu_seqlens, packing.longest
        mixed, log_sums, *_ = aten._flash_attention_forward(
            q, k, v, ends, ends, longest, longest, 0.0, True, False, scale=scale
        )
        return mixed[None], log_sums

    @staticmethod
    def backward(gradient, query, key, value, mixed, log_sums, packing: Packing, scale: float):
        q, k, v = (t[0].transpose(0, 1) for t in (query, *_repeated(query, key, value)))
        ends, longest = packing.cu_seqlens, packing.longest
        none = torch.zeros(2, dtype=torch.uint64, device=q.device)  # the generator's state: there is no dropout
        found = aten._flash_attention_backward(
            *(gradient[0].contiguous(), q, k, v, mixed[0], log_sums, ends, ends, longest, longest, 0.0, True),
            *(none, none),
            scale=scale,
        )
        dq, dk, dv = (t.transpose(0, 1)[None] for t in found)
        return dq, _summed(dk, key), _summed(dv, value)


class _Anywhere:
    """torch's own choice of a kernel, sample by sample, whose backward runs the forward again: for float32 and hidden
    places on a GPU."""

    @staticmethod
    def forward(query, key, value, packing: Packing, scale: float):
        parts = zip(*_parts(packing, query, *_repeated(query, key, value)), _masks(packing, query), strict=True)
        outs = [
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
            for q, k, v, mask in parts
        ]
        return torch.cat(outs, dim=2).transpose(1, 2).contiguous(), query.new_empty(0)

    @staticmethod
    def backward(gradient, query, key, value, mixed, log_sums, packing: Packing, scale: float):
        with torch.enable_grad():
            query, key, value = (t.detach().requires_grad_() for t in (query, key, value))
            again, _ = _Anywhere.forward(query, key, value, packing, scale)
        return torch.autograd.grad(again, (query, key, value), gradient)


def _kernel(query: torch.Tensor, packing: Packing) -> Any:
    if query.device.type == "cpu":
        return _OnCpu
    low = query.dtype in (torch.bfloat16, torch.float16)
    return _OnCuda if low and packing.hidden is None else _Anywhere


def _parts(packing: Packing, *rows: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """[1, heads, T, ..] each -> [1, heads, L, ..] of every sample."""
    return [t.split(packing.lengths, dim=2) for t in rows]


def _repeated(query: torch.Tensor, *rows: torch.Tensor) -> list[torch.Tensor]:
    """Keys and values for each query head."""
    groups = query.shape[1] // rows[0].shape[1]
    return [t.repeat_interleave(groups, dim=1) if groups > 1 else t for t in rows]


def _summed(gradient: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """The gradient of a key/value head: the sum over the query heads that read it."""
    groups = gradient.shape[1] // of.shape[1]
    return gradient.unflatten(1, (-1, groups)).sum(2) if groups > 1 else gradient


def _masks(packing: Packing, like: torch.Tensor) -> list[torch.Tensor | None]:
    """Of each sample None, or [1, 1, L, L], 0 or -infinity, if places are hidden: a hidden one is read by itself
    alone."""
    if packing.hidden is None:
        return [None] * len(packing.lengths)
    masks: list[torch.Tensor | None] = []
    for hidden in packing.hidden.split(packing.lengths):
        own = torch.eye(len(hidden), dtype=torch.bool, device=hidden.device)
        causal = torch.ones_like(own).tril()
        mask = torch.zeros(own.shape, dtype=like.dtype, device=like.device)
        masks.append(mask.masked_fill_(~((causal & ~hidden) | own), -torch.inf)[None, None])
    return masks
