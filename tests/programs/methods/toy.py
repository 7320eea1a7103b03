"""A method for tests: two modules trained in two stages, a loss of its own, and a callback. On models of two layers.

With `pieces`, in three stages of different parts:

    words    `first`, on captions alone, with the vocabulary in its hand and a language model
    match    `second` towards what the frozen `first` makes of the captions' tokens, without a language model
    write    `second`, with a language model, on questions
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from dsmemvp.config.fields import CONFIG
from dsmemvp.config.methods import MethodSettings
from dsmemvp.data.batch import Batch, Captions
from dsmemvp.data.captions import CaptionText
from dsmemvp.prompts.interface import Callback, Site, Sizes, Stage, State, Tower, VisualPrompt


@dataclass(config=CONFIG)
class Settings(MethodSettings):
    stages: int = 2
    size: float = 0.5
    """Weight of the loss "size"."""
    second: str = ""
    """Of data.train, what the second stage reads; empty: all."""
    pieces: str = ""
    """A vocab.txt: the three stages."""
    vectors: bool = False
    """Of these, whether `match` takes what the teacher makes of captions from where it is stored."""

    def stage_names(self) -> tuple[str, ...]:
        if self.pieces:
            return ("words", "match", "write")
        return ("train",) if self.stages == 1 else ("first", "second")


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
        self.width = sizes.language_width
        self.begin_stage(self.stages()[-1])

    def begin_stage(
        self, stage: Stage, teacher: nn.Module | None = None, vocabulary_Vd: torch.Tensor | None = None
    ) -> None:
        self.stage = stage
        self.given = (teacher, vocabulary_Vd)

    def teacher(self, stage: Stage) -> nn.Module | None:
        return self.first if stage.name == "match" else None

    def captions(self) -> CaptionText | None:
        if self.stage.name not in ("words", "match"):
            return None
        return CaptionText(self.settings.pieces, 16, 0.5 if self.stage.name == "words" else 0.0, target=True)

    def begin(self, batch: Batch) -> State:
        if self.stage.name != "match":
            return {}
        teacher, _ = self.given
        assert batch.captions is not None and teacher is not None and not teacher.training
        x_Bd, wanted_Bd = self._padded(batch.captions), batch.captions.vectors_BH
        assert self.settings.vectors == (wanted_Bd is not None)
        if wanted_Bd is None:
            wanted_Bd = self.caption_vectors(batch.captions)
        found_Bd = self.second(x_Bd.to(self.second.weight.dtype)).float()
        real_B1 = batch.captions.mask_BL.any(1)[:, None]
        return {"pull": ((found_Bd - wanted_Bd) ** 2 * real_B1).mean(-1).sum(), "far": found_Bd.detach().abs().sum()}

    def caption_vectors(self, captions: Captions) -> torch.Tensor:
        teacher = self.given[0]
        with torch.no_grad():
            return teacher(self._padded(captions).to(teacher.weight.dtype)).float()

    def _padded(self, captions: Captions) -> torch.Tensor:
        """[B, d], as many numbers as tokens, then zeros."""
        own_BL = captions.tokens_BL / 10.0
        return torch.nn.functional.pad(own_BL, (0, self.width - own_BL.shape[1]))

    def enter(self, site: Site, hidden: torch.Tensor, state: State, batch: Batch) -> torch.Tensor:
        if self.settings.pieces:
            return hidden + (self.first if self.stage.name == "words" else self.second)(hidden)
        return hidden + (self.first, self.second)[site.block](hidden)

    def finish(self, tower: Tower, output: torch.Tensor, state: State, batch: Batch) -> State:
        return {**state, "output": output.float()}

    def losses(self, state: State, batch: Batch) -> dict[str, torch.Tensor]:
        """`size` is a mean over samples, the language model's over tokens; `unused` is weighted by no stage."""
        if self.stage.name == "match":
            return {"pull": state["pull"], "far": state["far"]}
        size = state["output"].square().mean(-1).sum()
        found = {"size": size, "unused": size * torch.nan}
        if self.stage.vocabulary:
            vocabulary_Vd = self.given[1]
            assert vocabulary_Vd is not None and batch.captions is not None
            found["embedded"] = vocabulary_Vd.float().abs().mean() * batch.size
            found["drawn"] = batch.captions.drawn_BL.sum().float()
        return found

    def loss_counts(self, batch: Batch) -> dict[str, int]:
        samples = batch.size if batch.targets.numel() else 0
        words = {"embedded": batch.size, "drawn": samples}
        return {"size": samples, "unused": 1, "pull": samples, "far": samples, **words}

    def callbacks(self) -> Sequence[Callback]:
        return (Steps(),)

    def stages(self) -> Sequence[Stage]:
        if self.settings.pieces:
            words = Stage("words", 1, ("method.first",), modules=("first",), vocabulary=True, vision=False)
            match = Stage("match", 1, losses={"pull": 1.0}, language_loss=0.0, decoder=False, modules=("second",))
            write = Stage("write", 1.5, losses={"size": self.settings.size}, modules=("second",))
            match = replace(match, measures=("far",), vectors=self.settings.vectors)
            return (replace(words, measures=("embedded", "drawn")), match, write)
        if self.settings.stages == 1:
            return (Stage("train", losses={"size": self.settings.size}),)
        data = (self.settings.second,) if self.settings.second else ()
        return (
            Stage("first", epochs=1, trains=("method.first",)),
            Stage("second", epochs=1.5, trains=("method.second",), losses={"size": self.settings.size}, data=data),
        )
