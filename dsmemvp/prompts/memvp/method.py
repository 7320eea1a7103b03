"""MemVP: image features as key/value slots beside every feed-forward layer (Jie et al., ICML 2024, arXiv 2405.05615).

    M = pad(g * lambda * f(z), N)      K = M + p_k      V = M + p_v
    FFN'(x) = FFN(x) + s * dropout(silu(x K^T)) V

z image features, f the projector, g whether the sample has an image, N slots of which the first P carry the image and
the rest are purely learned, p_k and p_v learned positions, lambda and s fixed scales. One (K, V) serves all layers.

With `scores: separable` the branch is that of ADEM-VL (arXiv 2410.17779), which has the same parameters:

    FFN'(x) = FFN(x) + s * A V      A = silu(x) silu(K)^T, of which each token's lowest tenth is zero

Samples that lie side by side and look at the same image, or at none, have one memory: they are one group, and their
tokens are multiplied with it together. T tokens in the pack, G groups, N slots, d width, I images, P image tokens.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import model_validator
from pydantic.dataclasses import dataclass
from torch import nn
from torch.nn import functional as F

from dsmemvp.config.fields import CONFIG, Factor, Fraction, Width
from dsmemvp.config.methods import MethodSettings, VisionFeatures
from dsmemvp.counting import counted
from dsmemvp.data.batch import Batch
from dsmemvp.errors import UserError
from dsmemvp.host_values import from_host
from dsmemvp.prompts.interface import FeedForwardMemory, PublishedLayout, Site, Sizes, State, Tower, VisualPrompt
from dsmemvp.prompts.memvp.branch import LayerMemory, hand_out, memory_branch, without_lowest
from dsmemvp.prompts.memvp.published import Published
from dsmemvp.prompts.parts.projector import Projector


@dataclass(config=CONFIG)
class Settings(MethodSettings):
    hidden: Width = 128
    """Hidden width of the projector from image features to the language model's width."""
    slots: Width = 320
    """Key/value slots; those beyond the image tokens are purely learned."""
    visual_scale: Factor = 0.01
    """Factor on the projected image features inside keys and values (lambda)."""
    output_scale: Factor = 0.1
    """Factor on the output of the memory branch (s)."""
    dropout: Fraction = 0.1
    """Dropout on the slot activations."""
    class_token: bool = False
    """Whether tokens before the patches, such as the class token, are among the image tokens."""
    scores: Literal["joint", "separable"] = "joint"
    """How a token scores a slot: silu(x K^T), or as in ADEM-VL silu(x) silu(K)^T, of which each token's lowest tenth is
    zero. The latter has no dropout."""

    @model_validator(mode="after")
    def _no_dropout(self) -> "Settings":
        if self.scores == "separable" and self.dropout:
            raise ValueError(f"dropout: is {self.dropout}; separable scores have none, set method.dropout=0")
        return self

    def vision_features(self) -> VisionFeatures:
        return VisionFeatures(class_token=self.class_token)


class Method(VisualPrompt):
    description = (
        "MemVP, memory-space visual prompting (Jie et al., ICML 2024, arXiv 2405.05615): image features as key/value"
        " slots beside the weights of every feed-forward layer"
    )
    acts_in_tower = False
    published: PublishedLayout | None = Published()

    @classmethod
    def describe(cls, settings: Settings) -> dict[str, str]:
        slots, width = counted(settings.slots, "slot"), settings.hidden
        scales = f"scales {settings.visual_scale} and {settings.output_scale}"
        separable = ", separable scores" * (settings.scores == "separable")
        return {"memory": f"{slots}, projector of width {width}, {scales}{separable}"}

    @classmethod
    def build(cls, settings: Settings, sizes: Sizes) -> "Method":
        return cls(settings, sizes)

    def __init__(self, settings: Settings, sizes: Sizes):
        """Raises UserError if the slots cannot hold the image tokens."""
        super().__init__()
        if settings.slots < sizes.image_tokens:
            raise UserError(
                f"method.slots: {settings.slots} slots cannot hold the {sizes.image_tokens} image tokens of the vision"
                " tower"
            )
        self.image_tokens = sizes.image_tokens
        self.projector = Projector(sizes.vision_width, settings.hidden, sizes.language_width)
        # p_k ~ N(0, 0.02^2) and p_v = 0, so that a sample without image starts from the unchanged model
        self.key_positions = nn.Parameter(torch.empty(settings.slots, sizes.language_width).normal_(std=0.02))
        self.value_positions = nn.Parameter(torch.zeros(settings.slots, sizes.language_width))
        self.visual_scale, self.output_scale = settings.visual_scale, settings.output_scale
        self.dropout, self.separable = settings.dropout, settings.scores == "separable"

    def finish(self, tower: Tower, output: torch.Tensor, state: State, batch: Batch) -> State:
        return state | self(output, batch) if tower == "vision" else state

    def forward(self, features_IPv: torch.Tensor, batch: Batch) -> State:
        """-> each group's memory, [G, N, d]: `key` (with separable scores silu(K)) and `value` in the compute type; if
        there is to be a gradient, its float32 sums and what hands them out (branch.py)."""
        visual_IPd = self.projector(features_IPv).float() * self.visual_scale
        rows = [row for row, _, _ in batch.image_runs]
        # a group without image reads any row, times zero
        row_G = from_host([max(row, 0) for row in rows], visual_IPd.device)
        has_image_G = from_host([row >= 0 for row in rows], visual_IPd.device)
        visual_GPd = visual_IPd[row_G] * has_image_G[:, None, None]
        rest = self.key_positions.shape[0] - visual_GPd.shape[1]
        memory_GNd = F.pad(visual_GPd, (0, 0, 0, rest))
        key, value = (memory_GNd + p.float() for p in (self.key_positions, self.value_positions))
        if self.separable:
            key = F.silu(key)
        dtype = features_IPv.dtype
        low = {"key": key.detach().to(dtype), "value": value.detach().to(dtype)}
        if not torch.is_grad_enabled():
            return low
        sums = {"key_gradient": torch.zeros_like(key), "value_gradient": torch.zeros_like(value)}
        return low | sums | {"token": hand_out(key, value, tuple(sums.values()))}

    def mlp(self, site: Site, x: torch.Tensor, state: State, batch: Batch) -> torch.Tensor | None:
        if site.tower != "decoder":
            return None
        sizes = [tokens for _, _, tokens in batch.image_runs]
        dropout = batch.token_dropout.at(site, "memory") if self.training else None
        memory = LayerMemory(state["key"], state["value"], sizes, self.output_scale, separable=self.separable)
        if "token" in state:
            sums = (state["key_gradient"], state["value_gradient"])
            memory = replace(memory, token=state["token"], sums=sums)
        return memory_branch(x, memory, dropout, self.dropout)

    def decoding(self, state: State, batch: Batch) -> State:
        """The compute type's memory of each sample: decoding has no gradient to gather."""
        counts = torch.tensor([samples for _, samples, _ in batch.image_runs], device=state["key"].device)
        return {name: state[name].repeat_interleave(counts, dim=0) for name in ("key", "value")}

    def memory(self, state: State) -> FeedForwardMemory:
        key, value = state["key"].float(), state["value"].float()
        return FeedForwardMemory(key, value, self.output_scale, self.image_tokens, self.active)

    def active(self, x_Ld: torch.Tensor, key_Nd: torch.Tensor) -> torch.Tensor:
        """[L, N]"""
        return without_lowest(F.silu(x_Ld) @ key_Nd.T) if self.separable else F.silu(x_Ld @ key_Nd.T)
