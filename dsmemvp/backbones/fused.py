"""The elementwise parts of a frozen decoder block, each as one step of autograd that keeps its inputs and nothing else.
Written out in torch's operations, autograd would keep float32 copies and every product on the way.

Values are those of transformers' operations, bit for bit; weights get no gradient, since they are frozen.
T tokens, d width, H heads, D head width, N slots.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dsmemvp.dropout import Dropout, dropped

silu_backward = torch.ops.aten.silu_backward


class RmsNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps), the mean in float32; takes over the weight of transformers' module."""

    def __init__(self, norm: Any):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor, fused: bool = False) -> torch.Tensor:
        if fused:
            return _RmsNormed.apply(x, self.weight, self.eps)
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


class _RmsNormed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        assert not weight.requires_grad, "a trained norm takes the other way"
        ctx.save_for_backward(x)
        ctx.weight, ctx.eps = weight, eps
        return rms_norm(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return rms_norm_backward(gradient, x, ctx.weight, ctx.eps), None, None


def rms_norm_backward(gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """To x. With n = x / rms(x) and g = gradient * weight: (g - n * mean(g * n)) / rms(x)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    normed = wide * scale
    g = (gradient * weight).to(wide.dtype)
    return ((g - normed * (g * normed).mean(-1, keepdim=True)) * scale).to(x.dtype)


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotated(gradient, cos, -sin), None, None


def rotate(x_1HTD: torch.Tensor, cos_1TD: torch.Tensor, sin_1TD: torch.Tensor) -> torch.Tensor:
    """Rotary positions (Su et al., arXiv 2104.09864), halves of a head paired as transformers pairs them."""
    return _Rotated.apply(x_1HTD, cos_1TD, sin_1TD)


def rotated(x_1HTD: torch.Tensor, cos_1TD: torch.Tensor, sin_1TD: torch.Tensor) -> torch.Tensor:
    first, second = x_1HTD.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1).mul_(sin_1TD[:, None])
    return (x_1HTD * cos_1TD[:, None]).add_(turned)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        return silu_backward(gradient * up, gate), F.silu(gate).mul_(gradient)


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up"""
    return _Gated.apply(gate, up)


class _SlotsActive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, keys: torch.Tensor, p: float) -> torch.Tensor:
        ctx.save_for_backward(scores, keys)
        ctx.p = p
        return dropped(F.silu(scores), keys, p)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        scores, keys = ctx.saved_tensors
        return silu_backward(dropped(gradient, keys, ctx.p), scores), None, None


def slot_activation(scores_1TN: torch.Tensor, dropout: Dropout | None, p: float) -> torch.Tensor:
    """dropout(silu(scores)) with the mask of `dropout`; None: without."""
    if dropout is None or not p:
        return F.silu(scores_1TN)
    return _SlotsActive.apply(scores_1TN, dropout.keys, p)
