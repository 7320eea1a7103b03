"""A linear layer that keeps its input for the backward only if its weight is trained.

It refers to the weight by its Parameter. torch's own keeps a view of the weight's memory, which under ZeRO-3 would
stay alive after the weight was released; DeepSpeed's keeps every input, those of frozen weights included.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Linear(nn.Linear):
    @classmethod
    def over(cls, linear: nn.Linear) -> "Linear":
        """The same layer, with the same parameters."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.in_features, made.out_features = linear.in_features, linear.out_features
        made.weight, made.bias = linear.weight, linear.bias
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return F.linear(x, self.weight, self.bias)
        return _Product.apply(x, self.weight, self.bias)


def with_own_linears(module: nn.Module) -> nn.Module:
    """Puts a `Linear` in place of every linear layer inside."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, Linear.over(child))
        else:
            with_own_linears(child)
    return module


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: nn.Parameter, bias: nn.Parameter | None) -> torch.Tensor:
        ctx.weight, ctx.trains_bias = weight, bias is not None and bias.requires_grad
        ctx.save_for_backward(x if weight.requires_grad else None)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        to_x = gradient @ ctx.weight if ctx.needs_input_grad[0] else None
        to_weight = rows.T @ x.flatten(0, -2) if x is not None else None
        return to_x, to_weight, rows.sum(0) if ctx.trains_bias else None
