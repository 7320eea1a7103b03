"""The head of methods that classify: hidden states of a sample -> a logit for each class."""

import torch
from torch import nn

from dsmemvp.backbones.linear import Linear


class Classifier(nn.Module):
    """One linear layer, or with `hidden` DVP's: Linear, LayerNorm, GELU, Linear. [S, width] -> float32 [S, classes]."""

    def __init__(self, width: int, classes: int, hidden: int = 0):
        super().__init__()
        self.head = Linear(hidden or width, classes)
        self.inner = nn.Sequential(Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU()) if hidden else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(features if self.inner is None else self.inner(features)).float()
