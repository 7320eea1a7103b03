"""A method for tests: two modules trained in two stages, a loss of its own, and a callback. On models of two layers."""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from dsmemvp.config.fields import CONFIG
from dsmemvp.config.methods import MethodSettings
from dsmemvp.data.batch import Batch
from dsmemvp.prompts.interface import Callback, Site, Sizes, Stage, State, Tower, VisualPrompt


@dataclass(config=CONFIG)
class Settings(MethodSettings):
    stages: int = 2
    size: float = 0.5
    """Weight of the loss "size"."""
    second: str = ""
    """Of data.train, what the second stage reads; empty: all."""


class Shift(nn.Module):
    """x -> x W^T + b, from small values."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T + self.bias


class Steps:
    """Counts the steps of all starts of a run."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def after_step(self, step: int, method: VisualPrompt) -> None:
        self.steps.append(step)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = list(state["steps"])


class Method(VisualPrompt):
    sees_images = False

    @classmethod
    def build(cls, settings: Settings, sizes: Sizes) -> "Method":
        return cls(settings, sizes)

    def __init__(self, settings: Settings, sizes: Sizes):
        super().__init__()
        self.settings = settings
        self.first, self.second = Shift(sizes.language_width), Shift(sizes.language_width)

    def enter(self, site: Site, hidden: torch.Tensor, state: State, batch: Batch) -> torch.Tensor:
        return hidden + (self.first, self.second)[site.block](hidden)

    def finish(self, tower: Tower, output: torch.Tensor, state: State, batch: Batch) -> State:
        return {**state, "output": output.float()}

    def losses(self, state: State, batch: Batch) -> dict[str, torch.Tensor]:
        """`size` is a mean over samples, the language model's over tokens; `unused` is weighted by no stage."""
        size = state["output"].square().mean(-1).sum()
        return {"size": size, "unused": size * torch.nan}

    def loss_counts(self, batch: Batch) -> dict[str, int]:
        return {"size": batch.size if batch.targets.numel() else 0, "unused": 1}

    def callbacks(self) -> Sequence[Callback]:
        return (Steps(),)

    def stages(self) -> Sequence[Stage]:
        if self.settings.stages == 1:
            return (Stage("train", losses={"size": self.settings.size}),)
        data = (self.settings.second,) if self.settings.second else ()
        return (
            Stage("first", epochs=1, trains=("method.first",)),
            Stage("second", epochs=1.5, trains=("method.second",), losses={"size": self.settings.size}, data=data),
        )
