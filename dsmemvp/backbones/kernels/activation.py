"""silu(gate) * up of the feed-forward, and its backward. n elements; a program takes ELEMENTS of them."""

import torch
import triton
from triton import language as tl

from dsmemvp.backbones.kernels.arithmetic import ELEMENTS, narrow, sigmoid, warps


@triton.jit
def _forward(gate, up, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gate + at, mask=at < n, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=at < n, other=0.0).to(tl.float32)
    tl.store(out + at, narrow(g * sigmoid(g) * u, out.dtype.element_ty), mask=at < n)


@triton.jit
def _backward(gradient, gate, up, to_gate, to_up, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(gradient + at, mask=at < n, other=0.0).to(tl.float32)
    g = tl.load(gate + at, mask=at < n, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=at < n, other=0.0).to(tl.float32)
    s = sigmoid(g)
    slope = s * (1.0 + g * (1.0 - s))
    tl.store(to_gate + at, narrow(z * u * slope, to_gate.dtype.element_ty), mask=at < n)
    tl.store(to_up + at, narrow(z * g * s, to_up.dtype.element_ty), mask=at < n)


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, of one shape and dtype. Moves 3 n numbers: the least there is."""
    assert gate.shape == up.shape and gate.dtype == up.dtype
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    if n := gate.numel():
        _forward[(triton.cdiv(n, ELEMENTS),)](gate, up, out, n, ELEMENTS, num_warps=warps(ELEMENTS))
    return out


def silu_mul_backward(
    gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """-> to gate, to up. Moves 5 n numbers: the least there is."""
    assert gradient.shape == gate.shape == up.shape
    gradient, gate, up = gradient.contiguous(), gate.contiguous(), up.contiguous()
    to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
    if n := gate.numel():
        _backward[(triton.cdiv(n, ELEMENTS),)](
            gradient, gate, up, to_gate, to_up, n, ELEMENTS, num_warps=warps(ELEMENTS)
        )
    return to_gate, to_up
