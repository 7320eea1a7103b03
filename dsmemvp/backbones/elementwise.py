"""The elementwise parts of a frozen decoder block and their backwards in torch's operations; no autograd.

Forward values are those of transformers' operations, bit for bit. kernels/ holds the same functions for GPUs, under the
same names; fused.py chooses.
"""

import torch
from torch.nn import functional as F

from dsmemvp.dropout import dropped

_silu_backward = torch.ops.aten.silu_backward


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * x / sqrt(mean(x^2) + eps), the mean in float32."""
    wide, scale = _wide(x, eps)
    return weight * (wide * scale).to(x.dtype)


def rms_norm_backward(gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """To x. With s = 1 / rms(x) and g = gradient * weight: s * (g - x * s^2 * mean(g * x))."""
    wide, scale = _wide(x, eps)
    g = (gradient * weight).to(wide.dtype)
    own = torch.linalg.vecdot(g, wide)[..., None] * scale.pow(2) / -x.shape[-1]
    return g.addcmul_(wide, own).mul_(scale).to(x.dtype)


def _wide(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x in float32 at least, and 1 / rms(x) of every row."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide, torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)


def rms_norm_weight_backward(gradient: torch.Tensor, x: torch.Tensor, eps: float) -> torch.Tensor:
    """To the weight, [d]: the sum of gradient * x / rms(x) over all rows, in float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (gradient * normed).flatten(0, -2).sum(0).to(gradient.dtype)


def rotate(x_1HTD: torch.Tensor, cos_1TD: torch.Tensor, sin_1TD: torch.Tensor, inverse: bool = False) -> torch.Tensor:
    """Rotary positions (Su et al., arXiv 2104.09864), halves of a head paired as transformers pairs them; `inverse`
    turns back, which is also the backward."""
    first, second = x_1HTD.chunk(2, dim=-1)
    out = x_1HTD * cos_1TD[:, None]
    if not inverse:
        return out.add_(torch.cat((-second, first), dim=-1).mul_(sin_1TD[:, None]))
    sines = sin_1TD[:, None].chunk(2, dim=-1)
    for half, other, sine, sign in zip(out.chunk(2, dim=-1), (second, first), sines, (1, -1), strict=True):
        half.addcmul_(other, sine, value=sign)
    return out


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate).mul_(up)


def silu_mul_backward(
    gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return _silu_backward(gradient * up, gate), F.silu(gate).mul_(gradient)


def slot_activation(scores: torch.Tensor, keys: torch.Tensor, p: float) -> torch.Tensor:
    """dropout(silu(scores)) with the mask of the rows' keys (dropout.py)."""
    return dropped(F.silu(scores), keys, p)


def slot_activation_backward(
    gradient: torch.Tensor, scores: torch.Tensor, keys: torch.Tensor, p: float
) -> torch.Tensor:
    return _silu_backward(dropped(gradient, keys, p), scores)
