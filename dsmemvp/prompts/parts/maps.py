"""Small pieces of MITP's two forms."""

import torch
from torch import nn
from torch.nn import functional as F

from dsmemvp.backbones.linear import Linear

EPS = 1e-6


def zero_linear(width: int, out: int) -> Linear:
    """With a bias; both zero."""
    linear = Linear(width, out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def wide(x: torch.Tensor) -> torch.Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms(x: torch.Tensor) -> torch.Tensor:
    """x / sqrt(mean x^2 + eps), without a weight; computed in float32."""
    x_wide = wide(x)
    return (x_wide * (x_wide.square().mean(-1, keepdim=True) + EPS).rsqrt()).to(x.dtype)


def cosines(first_Bnd: torch.Tensor, second_Bnd: torch.Tensor) -> torch.Tensor:
    """[B, n, n], of every row of the first with every row of the second."""
    return F.normalize(first_Bnd, dim=-1) @ F.normalize(second_Bnd, dim=-1).transpose(1, 2)
