"""The vision tower of a family (vision_families.py), with the published bottleneck adapters beside every block's
feed-forward (MemVP, clip/model.py:234-238, memvp/adapter.py:51-77).

Built from transformers' own parts under their names, stepped block by block: `start` -> `layers[i]` -> `finish`.
I images, R resolution, P patches, v width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface

from dsmemvp.backbones import attention_products
from dsmemvp.backbones.decoder import Branch, no_branch
from dsmemvp.backbones.linear import Linear, with_own_linears
from dsmemvp.backbones.vision_families import built_blocks, vision_family
from dsmemvp.config.methods import VisionFeatures
from dsmemvp.config.recipe import Vision
from dsmemvp.data.images import STATISTICS
from dsmemvp.dropout import Dropout
from dsmemvp.host_values import from_host


def _attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, scaling: float, **_: Any
) -> tuple[torch.Tensor, None]:
    """What transformers' attention layers call: [I, heads, tokens, D] -> [I, tokens, heads, D]."""
    if torch.is_grad_enabled() and attention_products.serves(query):
        mixed = attention_products.Unmasked.apply(query, key, value, scaling)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, scale=scaling)
    return mixed.transpose(1, 2).contiguous(), None


_ATTENTION = "dsmemvp_vision"
AttentionInterface.register(_ATTENTION, _attend)


class Adapter(nn.Module):
    """scale * up(dropout(gelu(down(x)))), no biases, `up` starting at zero."""

    def __init__(self, width: int, dim: int, scale: float, dropout: float):
        super().__init__()
        self.down = Linear(width, dim, bias=False)
        self.up = Linear(dim, width, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale, self.dropout = scale, dropout

    def forward(self, x: torch.Tensor, dropout: Dropout | None) -> torch.Tensor:
        hidden = F.gelu(self.down(x))
        if dropout is not None:
            hidden = dropout(hidden, self.dropout)
        return self.scale * self.up(hidden)


class Block(nn.Module):
    def __init__(self, config: Any):
        super().__init__()
        family = vision_family(config)
        layer: Any = with_own_linears(family.block(config))
        for name in (family.attention, *family.norms, *family.scales):
            setattr(self, name, getattr(layer, name))
        self.mlp = layer.mlp
        self.family = family
        self.adapter: Adapter | None = None

    def forward(self, hidden: torch.Tensor, branch: Branch = no_branch, dropout: Dropout | None = None) -> torch.Tensor:
        """[I, tokens, v] -> [I, tokens, v]. Adapter and branch are added behind a layer scale, not scaled by it.
        `dropout` is the adapter's; None: without."""
        norm1, norm2, *scales = (getattr(self, name) for name in (*self.family.norms, *self.family.scales))
        attended = getattr(self, self.family.attention)(norm1(hidden), attention_mask=None)[0]
        hidden = hidden + (scales[0](attended) if scales else attended)
        x = norm2(hidden)
        out = self.mlp(x)
        if scales:
            out = scales[1](out)
        if self.adapter is not None:
            out = out + self.adapter(x, dropout)
        added = branch(x)
        if added is not None:
            out = out + added
        return hidden + out


def normalised(images: torch.Tensor, mean: Sequence[float], deviation: Sequence[float]) -> torch.Tensor:
    """uint8 [.., 3, R, R] -> float32; `mean` and `deviation` of red, green and blue in [0, 1]."""
    centre, spread = (from_host(s, images.device)[:, None, None] for s in (mean, deviation))
    return (images.float() / 255.0 - centre) / spread


class VisionTower(nn.Module):
    def __init__(self, config: Any, statistics: str = "auto", features: VisionFeatures | None = None):
        """`config` is of one of the families; `statistics` is a name in data/images.py, or "auto" for the family's:
        the pixels' mean and deviation. Raises UserError for features of a block that is not there."""
        super().__init__()
        self.config, self.family = config, vision_family(config)
        self.features = features or VisionFeatures()
        config._attn_implementation = _ATTENTION
        width, eps = config.hidden_size, config.layer_norm_eps
        embeddings: Any = self.family.embeddings(config)
        embeddings.mask_token = None  # DINOv2's, which only its training uses
        self.embeddings: Any = embeddings
        if self.family.first_norm:
            setattr(self, self.family.first_norm, nn.LayerNorm(width, eps=eps))
        self.layers: Any = nn.ModuleList(Block(config) for _ in range(built_blocks(config, self.features.block)))
        setattr(self, self.family.last_norm, nn.LayerNorm(width, eps=eps))
        self.statistics = STATISTICS[self.family.statistics if statistics == "auto" else statistics]

    @property
    def depth(self) -> int:
        return len(self.layers)

    def compute_buffers(self, device: torch.device) -> None:
        """What is numbered, not loaded, if the tower was built without memory."""
        if "position_ids" in dict(self.embeddings.named_buffers()):
            self.embeddings.position_ids = torch.arange(self.embeddings.num_positions, device=device)[None]

    def add_adapters(self, vision: Vision, blocks: Sequence[int]) -> None:
        """Trainable adapters in these blocks, those that are run; none if `vision.adapter_dim` is 0."""
        if vision.adapter_dim:
            for block in (self.layers[i] for i in blocks):
                width = self.config.hidden_size
                block.adapter = Adapter(width, vision.adapter_dim, vision.adapter_scale, vision.adapter_dropout)

    def start(self, images: torch.Tensor) -> torch.Tensor:
        """[I, 3, R, R], uint8 or normalised already -> [I, class and register tokens + P, v]"""
        pixels = images if images.is_floating_point() else normalised(images, *self.statistics)
        last_norm = getattr(self, self.family.last_norm)
        hidden = self.embeddings(pixels.to(last_norm.weight.dtype), **self.family.interpolating)
        return getattr(self, self.family.first_norm)(hidden) if self.family.first_norm else hidden

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The whole tower by itself: [I, 3, R, R] -> features [I, P, v]."""
        hidden = self.start(images)
        for block in self.layers:
            hidden = block(hidden)
        return self.finish(hidden)

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """-> features [I, P, v]; with class and register tokens in front if they are wanted"""
        features = hidden if self.features.class_token else hidden[:, self.family.dropped(self.config) :]
        return getattr(self, self.family.last_norm)(features) if self.features.norm else features
