"""The published projector from image features to the language model's width (MemVP, memvp/model.py:196-216)."""

import torch
from torch import nn

from dsmemvp.backbones.linear import Linear


class Projector(nn.Module):
    """Linear -> SiLU -> Linear; Xavier-uniform weights, zero biases. [.., v] -> [.., d]."""

    def __init__(self, vision_width: int, hidden: int, language_width: int):
        super().__init__()
        self.fc1 = Linear(vision_width, hidden)
        self.fc2 = Linear(hidden, language_width)
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.silu(self.fc1(features)))
