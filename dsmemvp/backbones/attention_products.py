"""The backward of attention on CPUs, in 16 bits, as products with the weights written out (Dao et al.,
arXiv 2205.14135, appendix B.2). torch's kernel for it takes up to four times as long, since it works in float32
throughout; its forward is used as it is.

I images or samples, H heads, L tokens, D head width.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

aten = torch.ops.aten
LONGEST = 300
"""Most tokens for which this is not slower (one core: a third of the kernel's time at 120 tokens, half at 200; from 300
to 500 it depends on the heads)."""
_ELEMENTS = 2**20
"""Weights written out at once, so that they stay in a core's cache."""


def serves(query_IHLD: torch.Tensor) -> bool:
    if isinstance(query_IHLD, FakeTensor):  # a plan's, which stands for one on a GPU
        return False
    return query_IHLD.is_cpu and query_IHLD.dtype == torch.bfloat16 and query_IHLD.shape[2] <= LONGEST


def gradients(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mixed: torch.Tensor,
    log_sums: torch.Tensor,
    scale: float,
    causal: bool,
) -> tuple[torch.Tensor, ...]:
    """-> gradients of query, key and value. All are [I, H, L, D] but the logarithms of the softmax's sums, [I, H, L]
    float32."""
    images, heads, length, _ = query.shape
    of_heads = max(1, min(heads, _ELEMENTS // length**2))
    of_images = max(1, _ELEMENTS // (heads * length**2)) if of_heads == heads else 1
    tensors = (gradient, query, key, value, mixed, log_sums)
    if of_heads == heads and of_images >= images:
        return _part(tensors, scale, causal)
    found = tuple(torch.empty_like(query) for _ in range(3))
    for image in range(0, images, of_images):
        for head in range(0, heads, of_heads):
            part = slice(image, image + of_images), slice(head, head + of_heads)
            for whole, made in zip(found, _part((t[part] for t in tensors), scale, causal), strict=True):
                whole[part] = made
    return found


def _part(tensors: Iterable[torch.Tensor], scale: float, causal: bool) -> tuple[torch.Tensor, ...]:
    gradient, query, key, value, mixed, log_sums = tensors
    weights = _weights(query, key, log_sums, scale)
    if causal:
        weights.tril_()
    to_value = weights.to(query.dtype).transpose(-1, -2) @ gradient
    own = (gradient.float() * mixed).sum(-1, keepdim=True)
    to_weights = (gradient @ value.transpose(-1, -2)).float()
    to_scores = to_weights.sub_(own).mul_(weights).mul_(scale).to(query.dtype)
    return to_scores @ key, to_scores.transpose(-1, -2) @ query, to_value


def _weights(query: torch.Tensor, key: torch.Tensor, log_sums: torch.Tensor, scale: float) -> torch.Tensor:
    """The softmax, float32 throughout, as the sums' logarithms were made: of a score of 60 bfloat16 leaves 0.25, which
    the exponential makes a quarter of the weight."""
    q, k = (query.float() * scale).flatten(0, 1), key.float().flatten(0, 1)
    scores = torch.baddbmm(log_sums.flatten(0, 1)[..., None], q, k.transpose(-1, -2), beta=-1)
    return scores.exp_().unflatten(0, query.shape[:2])


class Unmasked(torch.autograd.Function):
    """softmax(scale * Q K^T) V, [I, H, L, D], of which every token sees every other."""

    @staticmethod
    def forward(ctx: Any, query, key, value, scale: float) -> torch.Tensor:
        mixed, log_sums = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, False, scale=scale)
        ctx.save_for_backward(query, key, value, mixed, log_sums)
        ctx.scale = scale
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mixed, log_sums = ctx.saved_tensors
        return *gradients(gradient, query, key, value, mixed, log_sums, ctx.scale, causal=False), None
