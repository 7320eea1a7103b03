"""The head of methods that classify: hidden states of a sample -> a logit for each class."""

import torch
from torch import nn

from dsmemvp.backbones.linear import Linear


class Classifier(nn.Module):
    """[S, width] -> float32 [S, classes]: one linear layer; with `hidden` two, a LayerNorm and a GELU between them."""

    def __init__(self, width: int, classes: int, hidden: int = 0):
        super().__init__()
        self.inner = nn.Sequential(Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU()) if hidden else None
        self.head = Linear(hidden or width, classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        inner = features if self.inner is None else self.inner(features)
        return self.head(inner).float()
