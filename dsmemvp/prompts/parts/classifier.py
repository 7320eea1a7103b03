"""The head of methods that classify: hidden states of a sample -> a logit for each class."""

import torch
from torch import nn

from dsmemvp.backbones.linear import Linear


class Classifier(nn.Module):
    """One linear layer: [S, width] -> float32 [S, classes]."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.head = Linear(width, classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(features).float()
