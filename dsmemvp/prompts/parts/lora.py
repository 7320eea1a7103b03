"""LoRA (Hu et al., arXiv 2106.09685): a trained product of two thin matrices beside a frozen linear layer."""

import math

import torch
from torch import nn

from dsmemvp.backbones.linear import Linear
from dsmemvp.backbones.recompute import run_again
from dsmemvp.dropout import Dropout


class LoraLinear(Linear):
    """The given linear layer (same weight, same name) plus dropout(x) A^T B^T * alpha / rank, B starting at zero."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float):
        nn.Module.__init__(self)
        self.take_over(linear)
        self.lora_a = Linear(self.in_features, rank, bias=False)
        self.lora_b = Linear(rank, self.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_b.weight)
        self.dropout, self.scale = dropout, alpha / rank

    def forward(self, x: torch.Tensor, dropout: Dropout | None = None) -> torch.Tensor:
        return super().forward(x) + self.scale * run_again(self._trained, x, dropout)

    def _trained(self, x: torch.Tensor, dropout: Dropout | None) -> torch.Tensor:
        return self.lora_b(self.lora_a(dropout(x, self.dropout) if dropout is not None else x))
