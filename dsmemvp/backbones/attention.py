"""Attention over packed samples, registered with transformers under the name `packed`.

Whatever transformers' attention module calls it gets queries, keys and values of all samples in one row, [1, heads, T,
D], and a `Packing` that says where each sample lies; no sample sees another's tokens. On CUDA that is one call of a
kernel for variable lengths; anywhere else transformers' own function is called sample by sample, so that a sample's
numbers are exactly those it has alone.

In decoding the same function keeps keys and values (`KeyValueCache`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "packed"
GROW = 64
"""Places by which a cache grows, so that few steps of decoding copy it."""


@dataclass(frozen=True)
class Packing:
    """Where the samples lie in one row of T tokens."""

    cu_seqlens: torch.Tensor
    """[B + 1] int32"""
    lengths: tuple[int, ...]
    """[B], on the host"""
    cache: "KeyValueCache | None" = None
    hidden: torch.Tensor | None = None
    """[T] bool: places that this block reads at their own place only, since a method hides them; None: none."""

    @property
    def longest(self) -> int:
        return max(self.lengths)


@dataclass
class KeyValueCache:
    """Keys and values of every layer, [B, key/value heads, C, D], of which sample b has filled the first
    `lengths[b]` places. Padding is in here and nowhere else."""

    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    """[B, C] bool, of layers that do not read all places."""
    lengths: list[int] = field(default_factory=list)
    """Of the samples, as they were before this forward."""

    def fill(self, layer: int, key: torch.Tensor, value: torch.Tensor, packing: Packing) -> None:
        """Keep the prompts' keys and values, [1, heads, T, D]."""
        self.layers[layer] = (self._padded(key, packing), self._padded(value, packing))
        if packing.hidden is not None:
            self.hidden[layer] = self._padded(packing.hidden[None, None, :, None], packing)[:, 0, :, 0]

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add one token of every sample, [1, heads, B, D]; returns the layer's keys and values."""
        kept = self.layers[layer]
        if max(self.lengths) == kept[0].shape[2]:
            kept = self.layers[layer] = (F.pad(kept[0], (0, 0, 0, GROW)), F.pad(kept[1], (0, 0, 0, GROW)))
            if layer in self.hidden:
                self.hidden[layer] = F.pad(self.hidden[layer], (0, GROW))
        rows = torch.arange(len(self.lengths), device=key.device)
        at = torch.tensor(self.lengths, device=key.device)
        for whole, new in zip(kept, (key, value), strict=True):
            whole[rows, :, at] = new[0].transpose(0, 1)
        return kept

    def seen(self, layer: int, window: int | None = None) -> torch.Tensor:
        """[B, 1, 1, C] bool: the places that a new token of each sample sees, its own included; the last `window` of
        them if the layer's attention slides."""
        key = self.layers[layer][0]
        filled = torch.tensor(self.lengths, device=key.device)[:, None] + 1
        places = torch.arange(key.shape[2], device=key.device)
        seen = places < filled
        if window is not None:
            seen &= places >= filled - window
        if layer in self.hidden:
            seen &= ~self.hidden[layer]
        return seen[:, None, None]

    def _padded(self, rows: torch.Tensor, packing: Packing) -> torch.Tensor:
        _, heads, _, width = rows.shape
        room = -(-(packing.longest + 1) // GROW) * GROW
        padded = rows.new_zeros(len(packing.lengths), heads, room, width)
        for b, part in enumerate(rows[0].split(packing.lengths, dim=1)):
            padded[b, :, : part.shape[1]] = part
        return padded


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packing: Packing,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, T, D], key and value [1, key/value heads, T, D] -> [1, T, heads, D]; causal in each sample.

    No prompt and no training sample is longer than a sliding window (families.check_window), but a text that is being
    written may become so."""
    cache = packing.cache
    if cache is not None and cache.lengths:
        keys, values = cache.append(module.layer_idx, key, value)
        seen = cache.seen(module.layer_idx, sliding_window)
        query_BH1D = query[0].transpose(0, 1)[:, :, None]
        out, _ = sdpa_attention_forward(module, query_BH1D, keys, values, seen, scaling=scaling)
        return out.transpose(0, 1), None
    if cache is not None:
        cache.fill(module.layer_idx, key, value, packing)
    kernel = _variable_lengths() if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) else None
    if kernel is not None and not dropout and packing.hidden is None:
        rows = [t[0].transpose(0, 1) for t in (query, key, value)]
        return kernel(rows[0], rows[1], rows[2], packing, scaling)[None], None
    parts = (t.split(packing.lengths, dim=2) for t in (query, key, value))
    masks = _masks(packing)
    outs = [
        sdpa_attention_forward(module, q, k, v, mask, dropout=dropout, scaling=scaling, is_causal=mask is None)[0]
        for q, k, v, mask in zip(*parts, masks, strict=True)
    ]
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1), None


def _masks(packing: Packing) -> list[torch.Tensor | None]:
    """Of each sample None, or [1, 1, L, L] bool if places are hidden: a hidden one is read by itself alone."""
    if packing.hidden is None:
        return [None] * len(packing.lengths)
    masks: list[torch.Tensor | None] = []
    for hidden in packing.hidden.split(packing.lengths):
        own = torch.eye(len(hidden), dtype=torch.bool, device=hidden.device)
        causal = torch.ones_like(own).tril()
        masks.append(((causal & ~hidden) | own)[None, None])
    return masks


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Packing, float | None], torch.Tensor]
"""(query [T, heads, D], key and value [T, key/value heads, D], packing, scale) -> [T, heads, D]"""


@cache  # Python looks for a missing package anew at every import, and this is asked in every layer
def _variable_lengths() -> Kernel | None:
    """flash-attn's kernel if it is installed, else torch's; None if there is neither."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return _torch_kernel()

    def flash(query, key, value, packing, scale):
        ends, longest = packing.cu_seqlens, packing.longest
        return flash_attn_varlen_func(query, key, value, ends, ends, longest, longest, softmax_scale=scale, causal=True)

    return flash


def _torch_kernel() -> Kernel | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None

    def attend(query, key, value, packing, scale):
        # grouped heads are an argument from torch 2.12 on only; a repeated head costs memory traffic and no products
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        ends, longest = packing.cu_seqlens, packing.longest
        return varlen_attn(query, key, value, ends, ends, longest, longest, scale=scale, window_size=(-1, 0))

    return attend


AttentionInterface.register(NAME, packed_attention)
