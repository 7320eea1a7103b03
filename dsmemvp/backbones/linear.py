"""A linear layer that keeps its input for the backward only if its weight is trained.

It refers to the weight by its Parameter. torch's own keeps a view of the weight's memory, which under ZeRO-3 would
stay alive after the weight was released; DeepSpeed's keeps every input, those of frozen weights included.

A frozen weight may be stored in fewer bits (quantized.py): then `weight` holds bytes, and `weight_scale` goes with it.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dsmemvp.backbones import quantized
from dsmemvp.backbones.partitioned import whole_shape
from dsmemvp.backbones.quantized import Form, Layout


class Linear(nn.Linear):
    layout: Layout | None = None
    """Of a weight that is stored in fewer bits."""
    weight_scale: nn.Parameter
    """Its scales, if it is."""

    @classmethod
    def over(cls, linear: nn.Linear) -> "Linear":
        """The same layer, with the same parameters."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.take_over(linear)
        return made

    def take_over(self, linear: nn.Linear) -> None:
        """Its sizes and its parameters, the same ones."""
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        if isinstance(linear, Linear) and linear.layout is not None:
            self.layout, self.weight_scale = linear.layout, linear.weight_scale

    def quantize(self, form: Form, fitted: bool = False) -> None:
        """Put parameters of that form, without values, in the place of the weight. Raises UserError for a shape that
        it cannot store."""
        old = self.weight
        self.layout = Layout(form, (self.out_features, self.in_features), fitted)
        codes = torch.empty(self.layout.codes_shape, dtype=torch.uint8, device=old.device)
        scales = torch.empty(self.layout.units, dtype=old.dtype, device=old.device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.weight_scale = nn.Parameter(scales, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.layout is not None:
            out = _QuantizedProduct.apply(x, self.weight, self.weight_scale, self.layout)
            return out if self.bias is None else out + self.bias
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


def quantize_linears(module: nn.Module, form: Form, fitted: bool) -> None:
    """Every `Linear` inside. Raises UserError."""
    for part in module.modules():
        if isinstance(part, Linear):
            part.quantize(form, fitted)


def stored_shapes(module: nn.Module) -> dict[torch.Tensor, tuple[int, ...]]:
    """Every parameter inside, with the shape of the tensor that it holds: of a quantised weight the shape it had
    before. Scales are left out."""
    linears = [part for part in module.modules() if isinstance(part, Linear) and part.layout]
    scales = {part.weight_scale for part in linears}
    shapes: dict[torch.Tensor, tuple[int, ...]] = {p: whole_shape(p) for p in module.parameters() if p not in scales}
    for part in linears:
        assert part.layout is not None
        shapes[part.weight] = part.layout.shape
    return shapes


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


class _QuantizedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: nn.Parameter, scale: nn.Parameter, layout: Layout) -> torch.Tensor:
        ctx.weight, ctx.scale, ctx.layout = weight, scale, layout
        return quantized.product(x, weight, scale, layout)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        return quantized.product_backward(gradient, ctx.weight, ctx.scale, ctx.layout), None, None, None
