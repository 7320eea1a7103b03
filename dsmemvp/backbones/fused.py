"""The elementwise parts of a frozen decoder block, each as one step of autograd that keeps its inputs and nothing else.
Written out in torch's operations, autograd would keep float32 copies and every product on the way.

On a GPU each runs as a kernel of its own (kernels/), unless DSMEMVP_KERNELS=0 turns these off; elsewhere as torch's
operations (elementwise.py). A norm's weight gets a gradient if it is trained.
T tokens, H heads, D head width.
"""

import logging
import os
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import nn

from dsmemvp.backbones import elementwise, kernels

log = logging.getLogger(__name__)


class RmsNorm(nn.Module):
    """Takes over the weight of transformers' module."""

    def __init__(self, norm: Any):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor, fused: bool = False) -> torch.Tensor:
        if fused:
            return _Normed.apply(x, self.weight, self.eps)
        return elementwise.rms_norm(x, self.weight, self.eps)


def rotate(x_1HTD: torch.Tensor, cos_1TD: torch.Tensor, sin_1TD: torch.Tensor) -> torch.Tensor:
    """Rotary positions."""
    return _Rotated.apply(x_1HTD, cos_1TD, sin_1TD)


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up"""
    return _Gated.apply(gate, up)


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.eps = weight, eps  # not saved: under ZeRO-3 that would keep its memory alive
        return form_of(x).rms_norm(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        (x,) = ctx.saved_tensors
        to_x = form_of(x).rms_norm_backward(gradient, x, ctx.weight, ctx.eps) if ctx.needs_input_grad[0] else None
        to_weight = elementwise.rms_norm_weight_backward(gradient, x, ctx.eps) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, None


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return form_of(x).rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return form_of(gradient).rotate(gradient, *ctx.saved_tensors, inverse=True), None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return form_of(gate).silu_mul(gate, up)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return form_of(gradient).silu_mul_backward(gradient, *ctx.saved_tensors)


def form_of(x: torch.Tensor) -> Any:
    """The elementwise functions for a tensor: torch's operations, or kernels, or on the meta device their shapes."""
    if x.is_meta:
        return import_module("dsmemvp.backbones.kernels.shapes").operations
    kernel = x.is_cuda and x.dtype != torch.float64 and _compiled()
    return import_module("dsmemvp.backbones.kernels.functions") if kernel else elementwise


@cache
def _compiled() -> bool:
    if os.environ.get("DSMEMVP_KERNELS") == "0":
        return False
    if problem := kernels.missing():
        log.warning("elementwise operations run as torch's own, which takes longer: %s", problem)
    return not problem
