"""The vision tower: CLIP's ViT up to its penultimate block, class token dropped, post_layernorm on the patch tokens,
with the published bottleneck adapters beside every block's MLP (MemVP, clip/model.py:234-238, memvp/adapter.py:51-77).

Built from transformers' CLIP parts under their names, stepped block by block: `start` -> `layers[i]` -> `finish`.
I images, R resolution, P patches, v width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPMLP, CLIPAttention, CLIPVisionEmbeddings

from dsmemvp.backbones.decoder import Branch, no_branch
from dsmemvp.config.recipe import Vision
from dsmemvp.data.images import STATISTICS
from dsmemvp.errors import UserError


class Adapter(nn.Module):
    """scale * up(dropout(gelu(down(x)))), no biases, `up` starting at zero."""

    def __init__(self, width: int, dim: int, scale: float, dropout: float):
        super().__init__()
        self.down = nn.Linear(width, dim, bias=False)
        self.up = nn.Linear(dim, width, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale, self.dropout = scale, dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.dropout(F.gelu(self.down(x)), self.dropout, self.training)
        return self.scale * self.up(hidden)


class Block(nn.Module):
    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.self_attn = CLIPAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.adapter: Adapter | None = None

    def forward(self, hidden: torch.Tensor, branch: Branch = no_branch) -> torch.Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))[0]
        x = self.layer_norm2(hidden)
        out = self.mlp(x)
        if self.adapter is not None:
            out = out + self.adapter(x)
        added = branch(x)
        if added is not None:
            out = out + added
        return hidden + out


def square(side: object) -> int:
    """A configuration's size that must be one number. Raises UserError."""
    if not isinstance(side, int):
        raise UserError(f"model.vision_tower: a size of {side}; only square images are supported")
    return side


def image_tokens(config: CLIPVisionConfig) -> int:
    """P, the number of patches."""
    return (square(config.image_size) // square(config.patch_size)) ** 2


def normalised(images: torch.Tensor, mean: Sequence[float], deviation: Sequence[float]) -> torch.Tensor:
    """uint8 [.., 3, R, R] -> float32; `mean` and `deviation` of red, green and blue in [0, 1]."""
    centre, spread = (torch.tensor(s, device=images.device)[:, None, None] for s in (mean, deviation))
    return (images.float() / 255.0 - centre) / spread


class VisionTower(nn.Module):
    """The last block of the published tower is neither built nor loaded."""

    def __init__(self, config: CLIPVisionConfig, statistics: str = "imagenet"):
        """`statistics` is a name in data/images.py: the pixels' mean and deviation."""
        super().__init__()
        config._attn_implementation = "sdpa"
        self.config = config
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers: Any = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers - 1))
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.statistics = STATISTICS[statistics]

    @property
    def depth(self) -> int:
        return len(self.layers)

    def add_adapters(self, vision: Vision) -> None:
        """Trainable adapters in every block; none if `vision.adapter_dim` is 0."""
        if vision.adapter_dim:
            for block in self.layers:
                width = self.config.hidden_size
                block.adapter = Adapter(width, vision.adapter_dim, vision.adapter_scale, vision.adapter_dropout)

    def start(self, images: torch.Tensor) -> torch.Tensor:
        """[I, 3, R, R], uint8 or normalised already -> [I, 1 + P, v]"""
        pixels = images if images.is_floating_point() else normalised(images, *self.statistics)
        return self.pre_layrnorm(self.embeddings(pixels.to(self.post_layernorm.weight.dtype)))

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """-> features [I, P, v]"""
        return self.post_layernorm(hidden[:, 1:])
