"""The usual baseline: projected image features as input tokens + LoRA on the language model, as in LLaVA.

Image tokens stand after BOS, so every block computes on them.

T tokens in the pack, I images, P image tokens, d width of the language model.
"""

from collections.abc import Sequence
from dataclasses import field
from typing import Annotated

import torch
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass
from torch import nn

from dsmemvp.config.fields import CONFIG, FROM_TEXT, Fraction, Texts, Width
from dsmemvp.config.methods import MethodSettings
from dsmemvp.data.batch import Batch
from dsmemvp.data.layout import Reserved
from dsmemvp.prompts.interface import Site, Sizes, State, Tower, VisualPrompt
from dsmemvp.prompts.parts.lora import LoraLinear
from dsmemvp.prompts.parts.projector import Projector

PLACES = "image"
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of a decoder block, in all families."""


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
        if unknown := [name for name in targets if name not in LINEARS]:
            raise ValueError(f"must be of {', '.join(LINEARS)}, not {unknown[0][:80]!r}")
        return targets


class Method(VisualPrompt):
    description = (
        "input-space visual prompting, as in LLaVA: projected image features as input tokens, LoRA on the language"
        " model"
    )
    acts_in_tower = False

    @classmethod
    def describe(cls, settings: Settings) -> dict[str, str]:
        rank, alpha, targets = settings.lora_rank, settings.lora_alpha, settings.lora_targets
        return {"LoRA": f"rank {rank}, alpha {alpha}, on {', '.join(targets)}"}

    @classmethod
    def build(cls, settings: Settings, sizes: Sizes) -> "Method":
        return cls(settings, sizes)

    def __init__(self, settings: Settings, sizes: Sizes):
        super().__init__()
        self.image_tokens = sizes.image_tokens
        self.projector = Projector(sizes.vision_width, settings.hidden, sizes.language_width)
        self._lora = (settings.lora_rank, settings.lora_alpha, settings.dropout)
        self._targets = tuple(settings.lora_targets)

    def reserved(self) -> Sequence[Reserved]:
        return (Reserved(PLACES, self.image_tokens),)

    def finish(self, tower: Tower, output: torch.Tensor, state: State, batch: Batch) -> State:
        """Of the vision tower: `visual`, [max(I, 1), P, d]."""
        return state | {"visual": self.projector(output)} if tower == "vision" else state

    def enter(self, site: Site, hidden: torch.Tensor, state: State, batch: Batch) -> torch.Tensor:
        """Image tokens take their places on entering the decoder. Later steps of decoding find them in the cache."""
        if site != ("decoder", 0) or "visual" not in state:
            return hidden
        visual_IPd, places = state["visual"], batch.places[PLACES]
        if places.numel() == 0:
            return hidden + 0.0 * visual_IPd.sum()  # the dummy row enters the graph with weight zero
        if places.numel() > visual_IPd.shape[0] * self.image_tokens:  # samples share images
            visual_IPd = visual_IPd[[row for row in batch.image_rows if row >= 0]]
        visual_1Nd = visual_IPd.flatten(0, 1).to(hidden.dtype)[None]
        return hidden.index_copy(1, places, visual_1Nd)

    def replacement(self, name: str, linear: nn.Linear) -> nn.Linear | None:
        return LoraLinear(linear, *self._lora) if name in self._targets else None
