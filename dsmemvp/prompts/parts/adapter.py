"""Bottleneck adapters behind a frozen linear layer of the decoder (Houlsby et al., arXiv 1902.00751), as in DVP's
published code: x + U silu(D x + b) + c, on what the layer gives."""

import torch
from torch import nn
from torch.nn import functional as F

from dsmemvp.backbones.linear import Linear
from dsmemvp.dropout import Dropout


class AdaptedLinear(Linear):
    """The given linear layer (same weight, same name) with an adapter behind it."""

    def __init__(self, linear: nn.Linear, width: int, zero_init: bool = False):
        """Weights are Xavier-uniform and biases zero; `zero_init`: U is zero, too, so that nothing changes at first."""
        nn.Module.__init__(self)
        self.take_over(linear)
        self.adapter_down = Linear(self.out_features, width)
        self.adapter_up = Linear(width, self.out_features)
        for layer in (self.adapter_down, self.adapter_up):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        if zero_init:
            nn.init.zeros_(self.adapter_up.weight)

    def forward(self, x: torch.Tensor, dropout: Dropout | None = None) -> torch.Tensor:
        """An adapter has no dropout; the argument is that of every layer that a method puts in (decoder.py)."""
        out = super().forward(x)
        return out + self.adapter_up(F.silu(self.adapter_down(out)))
