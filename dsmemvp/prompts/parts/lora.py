"""LoRA (Hu et al., arXiv 2106.09685): a trained product of two thin matrices beside a frozen linear layer."""

import math

import torch
from torch import nn


class LoraLinear(nn.Linear):
    """The given linear layer (same weight, same name) plus dropout(x) A^T B^T * alpha / rank, B starting at zero."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_a = nn.Linear(self.in_features, rank, bias=False)
        self.lora_b = nn.Linear(rank, self.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_b.weight)
        self.dropout, self.scale = nn.Dropout(dropout), alpha / rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.scale * self.lora_b(self.lora_a(self.dropout(x)))
