"""The usual baseline: projected image features as input tokens + LoRA on the language model, as in LLaVA.

Image tokens stand after BOS, so every layer computes on them; LoRA is that of Hu et al. (arXiv 2106.09685).
"""

import math
from dataclasses import field
from typing import Annotated

import torch
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass
from torch import nn

from dsmemvp.config.fields import CONFIG, FROM_TEXT, Fraction, Texts, Width
from dsmemvp.config.methods import MethodSettings
from dsmemvp.data.batch import Batch
from dsmemvp.prompts.interface import Sizes, State, VisualPrompt
from dsmemvp.prompts.parts.projector import Projector


@dataclass(config=CONFIG)
class Settings(MethodSettings):
    hidden: Width = 128
    """Hidden width of the projector from image features to the language model's width."""
    dropout: Fraction = 0.1
    """Dropout in front of LoRA."""
    lora_rank: Width = 8
    """Rank of LoRA on the language model."""
    lora_alpha: Annotated[float, Field(ge=0, le=2**16), FROM_TEXT] = 16.0
    """LoRA's output is multiplied by alpha / rank."""
    lora_targets: Texts = field(default_factory=lambda: ["q_proj", "v_proj"])
    """Which linear layers of every decoder layer get LoRA."""

    @field_validator("lora_targets")
    @classmethod
    def _some(cls, targets: list[str]) -> list[str]:
        if not targets:
            raise ValueError("name at least one linear layer, such as q_proj")
        return targets


class InputSpace(VisualPrompt):
    sees_images = True

    def __init__(self, sizes: Sizes, hidden: int, rank: int, alpha: float, dropout: float, targets: tuple[str, ...]):
        super().__init__()
        self.slots = sizes.image_tokens
        self.projector = Projector(sizes.vision_width, hidden, sizes.language_width)
        self._lora = (rank, alpha, dropout)
        self._targets = targets

    def forward(self, features: torch.Tensor | None, batch: Batch) -> State:
        """-> ([max(I, 1), P, d],)"""
        assert features is not None
        return (self.projector(features),)

    def for_later_steps(self, state: State) -> State:
        """Nothing: the image tokens are in the key/value cache."""
        return ()

    def enter_layer(self, layer: int, hidden_BLd: torch.Tensor, state: State, batch: Batch) -> torch.Tensor:
        if layer > 0 or not state:
            return hidden_BLd
        visual_IPd = state[0]
        if batch.slot_place.numel() == 0:
            return hidden_BLd + 0.0 * visual_IPd.sum()  # the dummy row enters the graph with weight zero
        if batch.slot_place.numel() > visual_IPd.shape[0] * self.slots:  # samples share images
            visual_IPd = visual_IPd[batch.image_of[batch.image_of >= 0]]
        visual_d = visual_IPd.flatten(0, 1)
        flat = hidden_BLd.flatten(0, 1).index_copy(0, batch.slot_place, visual_d.to(hidden_BLd.dtype))
        return flat.view_as(hidden_BLd)

    def replacement(self, name: str, linear: nn.Linear) -> nn.Linear | None:
        return LoraLinear(linear, *self._lora) if name in self._targets else None


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
