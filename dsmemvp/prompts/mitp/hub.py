"""MITP's hub: the acquired prompts of the two towers are compared, each tower's are mixed for the other one
(consolidation), and what was mixed is added to them (activation).

    e_m = A_m rms(p_m)                      S = cos(e_v, e_t) / tau
    c_v = softmax(S) e_t                    c_t = softmax(S^T) e_v
    p_m <- p_m + g B_m gelu(c_m)            both from the old prompts; g = 0 for a sample without image

All maps are shared by all hubs. B samples, n prompts, v and d widths of the towers.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from dsmemvp.backbones.linear import Linear
from dsmemvp.prompts.interface import Sizes
from dsmemvp.prompts.mitp.settings import Settings
from dsmemvp.prompts.parts.maps import cosines, rms, wide, zero_linear


class Mixed(NamedTuple):
    """float32"""

    similarity: torch.Tensor
    """S [B, n, n]: of vision prompt, text prompt"""
    vision: torch.Tensor
    """c_v [B, n, rank]"""
    text: torch.Tensor
    """c_t [B, n, rank]"""


class Hub(nn.Module):
    """It has no parameters of its own, but layers: each is whole in its own forward under ZeRO-3."""

    def __init__(self, settings: Settings, sizes: Sizes, hubs: int):
        super().__init__()
        v, d, rank = sizes.vision_width, sizes.language_width, settings.rank
        self.to_rank_vision, self.to_rank_text = Linear(v, rank), Linear(d, rank)
        self.from_rank_text = zero_linear(rank, d)
        # what nobody reads is not made: with learned queries the vision tower has no prompts, and those of the last hub
        # have no reader
        two_way = settings.vision == "two_way"
        self.first_vision = Linear(rank, v) if two_way else None
        self.from_rank_vision = zero_linear(rank, v) if two_way and hubs > 1 else None
        self.settings = settings

    def first(self, text_1nd: torch.Tensor) -> torch.Tensor:
        """The first vision prompts, [1, n, v], of the first text prompts."""
        assert self.first_vision is not None
        return self.first_vision(self.to_rank_text(rms(text_1nd)))

    def mix(self, vision_Bnv: torch.Tensor, text_Bnd: torch.Tensor) -> Mixed:
        """The acquired prompts -> what each tower gets of the other."""
        e_v, e_t = (wide(e) for e in (self.to_rank_vision(rms(vision_Bnv)), self.to_rank_text(rms(text_Bnd))))
        if self.settings.sim == "cos":
            similarity = cosines(e_v, e_t) / self.settings.tau
        else:
            similarity = e_v @ e_t.transpose(1, 2) / self.settings.rank**0.5
        # with weight zero: beside cached vision nothing else reads the map of the text
        scores = 0.0 * similarity if self.settings.hub == "uniform" else similarity
        return Mixed(similarity, scores.softmax(-1) @ e_t, scores.transpose(1, 2).softmax(-1) @ e_v)

    def text(self, kept_Bnd: torch.Tensor, mixed: Mixed, has_image_B11: torch.Tensor) -> torch.Tensor:
        return self._added(self.from_rank_text, kept_Bnd, mixed.text, has_image_B11)

    def vision(self, kept_Bnv: torch.Tensor, mixed: Mixed, has_image_B11: torch.Tensor) -> torch.Tensor:
        assert self.from_rank_vision is not None
        return self._added(self.from_rank_vision, kept_Bnv, mixed.vision, has_image_B11)

    def _added(self, up: Linear, kept: torch.Tensor, mixed: torch.Tensor, has_image_B11: torch.Tensor) -> torch.Tensor:
        active = F.gelu(mixed) if self.settings.activation == "gelu" else mixed
        return kept + has_image_B11 * up(active.to(kept.dtype))


class Queries(nn.Module):
    """In place of vision prompts: softmax(Q rms(u)^T / sqrt(v)) u over the tokens u that a block of the unchanged
    vision tower gives."""

    def __init__(self, number: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(number, width).normal_(std=0.02))

    def forward(self, tokens_INv: torch.Tensor) -> torch.Tensor:
        """-> [I, n, v]"""
        scores_InN = wide(self.weight @ rms(tokens_INv).transpose(1, 2)) / tokens_INv.shape[-1] ** 0.5
        return scores_InN.softmax(-1).to(tokens_INv.dtype) @ tokens_INv
