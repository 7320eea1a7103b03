"""The question looks at the picture: one query, the image tokens as keys and values (Dynamic_Visual_Prompting,
dvp/modules/llama_module.py, Cross_Attention). No residual, norm, gate or feed-forward.

Q queries (samples with an image), k prompts, I images, N visual tokens, v width of the vision tower, d width of the
language model, m inner width, H heads, D their width.
"""

import torch
from torch import nn

from dsmemvp.backbones.linear import Linear
from dsmemvp.dropout import Dropout


class CrossAttention(nn.Module):
    """Linear layers start as torch's own do; with more than one prompt each has a learned offset to the query."""

    def __init__(self, vision_width: int, language_width: int, width: int, heads: int, prompts: int = 1):
        super().__init__()
        self.heads = heads
        self.query = Linear(language_width, width)
        self.key = Linear(vision_width, width)
        self.value = Linear(vision_width, width)
        self.out = Linear(width, language_width)
        self.offsets = nn.Parameter(torch.empty(prompts, language_width).normal_(std=0.02)) if prompts > 1 else None

    def forward(
        self,
        query_Qd: torch.Tensor,
        visual_INv: torch.Tensor,
        rows: list[int],
        dropout: Dropout | None = None,
        p: float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`rows`: of each query the row of its image. `dropout`, with one key for each query, takes attention weights
        with probability `p`. -> prompts [Q, k, d], and the attention weights before dropout [Q, H, k, N], float32."""
        query_Qkd = query_Qd[:, None] if self.offsets is None else query_Qd[:, None] + self.offsets
        query, key, value = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.query(query_Qkd), self.key(visual_INv), self.value(visual_INv))
        )
        if rows != list(range(visual_INv.shape[0])):
            key, value = key[rows], value[rows]
        scores_QHkN = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        wide = torch.promote_types(scores_QHkN.dtype, torch.float32)
        weights_QHkN = scores_QHkN.to(wide).softmax(-1)
        kept = weights_QHkN
        if dropout is not None and p:
            kept = dropout(weights_QHkN.flatten(1), p).view_as(weights_QHkN)
        mixed_QHkD = kept.to(value.dtype) @ value
        return self.out(mixed_QHkD.transpose(1, 2).flatten(2)), weights_QHkN
