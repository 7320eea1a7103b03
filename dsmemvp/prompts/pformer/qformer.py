"""The Q-Former of BLIP-2 (LAVIS, Qformer.py): a BERT with learned queries, which look at the image tokens by
cross-attention in every second layer. Self-attention is shared with a branch for text, whose feed-forward layers and
embeddings are its own; without that branch it is what later stages and inference use.

I images or rows, n queries, P image tokens, v width of the vision tower, B rows, L text tokens, K keys, H width.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dsmemvp.backbones.linear import Linear
from dsmemvp.prompts.pformer.bert import Attention, FeedForward, KeysValues, Noise, own_tokens


class QueryLayer(nn.Module):
    def __init__(self, config: Any, vision_width: int):
        """`vision_width`: of what it looks at; 0 for a layer without cross-attention."""
        super().__init__()
        self.attention = Attention(config)
        self.cross_attention = Attention(config, vision_width) if vision_width else None
        self.feed_forward = FeedForward(config)

    def after_attention(self, x_InH: torch.Tensor, visual_IPv: torch.Tensor, noise: Noise) -> torch.Tensor:
        if self.cross_attention is not None:
            x_InH, _ = self.cross_attention(x_InH, visual_IPv, None, noise.at("cross"))
        return self.feed_forward(x_InH, noise.at("feed_forward"))


class QFormer(nn.Module):
    def __init__(self, config: Any, queries: int, vision_width: int, cross_every: int):
        """`config` is BERT's."""
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, queries, config.hidden_size).normal_(std=0.02))
        self.vision_norm = nn.LayerNorm(vision_width)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers: Any = nn.ModuleList(
            QueryLayer(config, 0 if i % cross_every else vision_width) for i in range(config.num_hidden_layers)
        )

    def forward(self, rows: int, noise: Noise) -> torch.Tensor:
        """What goes into the first layer, [rows, n, H]."""
        return noise.at("embeddings")(self.norm(self.queries).expand(rows, -1, -1))

    def look(self, visual_IPv: torch.Tensor, noise: Noise) -> tuple[torch.Tensor, list[KeysValues]]:
        """-> the queries' last hidden states [I, n, H], and every layer's keys and values of them."""
        x_InH = self(len(visual_IPv), noise)
        visual_IPv = self.vision_norm(visual_IPv)
        past = []
        for i, layer in enumerate(self.layers):
            inside = noise.at(i)
            x_InH, own = layer.attention(x_InH, noise=inside.at("attention"))
            x_InH = layer.after_attention(x_InH, visual_IPv, inside)
            past.append(own)
        return x_InH, past


class Words(Linear):
    """Word embeddings, and in the place of a head the same weights with a bias."""

    def __init__(self, width: int, rows: int):
        super().__init__(width, rows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens -> [.., H], or hidden states -> logits [.., rows]."""
        return super().forward(x) if x.is_floating_point() else F.embedding(x, self.weight)


class TextBranch(nn.Module):
    def __init__(self, config: Any, rows: int):
        """`rows`: BERT's vocabulary and [DEC], with which a text to be written begins."""
        super().__init__()
        self.words = Words(config.hidden_size, rows)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers: Any = nn.ModuleList(FeedForward(config) for _ in range(config.num_hidden_layers))
        self.transform = Linear(config.hidden_size, config.hidden_size)
        self.transform_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states -> float32 logits over words."""
        return self.words(self.transform_norm(F.gelu(self.transform(x)))).float()


def embedded(qformer: QFormer, text: TextBranch, tokens_BL: torch.Tensor, noise: Noise) -> torch.Tensor:
    """-> [B, L, H]; the norm is the queries' own."""
    places_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
    summed_BLH = text.words(tokens_BL) + text.positions(places_L)
    return noise.at("embeddings")(qformer.norm(summed_BLH))


def read(
    qformer: QFormer,
    text: TextBranch,
    tokens_BL: torch.Tensor,
    mask_BL: torch.Tensor,
    noise: Noise,
    past: list[KeysValues] | None = None,
) -> torch.Tensor:
    """The text alone -> [B, L, H]. In both directions; with the queries' keys and values, `past`, in front, a token
    reads all of these and the text up to itself."""
    x_BLH, seen_BQK = embedded(qformer, text, tokens_BL, noise), own_tokens(mask_BL)[:, None]
    if past is not None:
        length, queries = tokens_BL.shape[1], past[0][0].shape[2]
        before_LL = torch.ones(length, length, dtype=torch.bool, device=tokens_BL.device).tril()
        seen_BQK = F.pad(seen_BQK & before_LL, (queries, 0), value=True)
    for i, (shared, own) in enumerate(zip(qformer.layers, text.layers, strict=True)):
        inside = noise.at(i)
        own_past = past[i] if past is not None else None
        x_BLH, _ = shared.attention(x_BLH, None, seen_BQK, inside.at("attention"), own_past)
        x_BLH = own(x_BLH, inside.at("feed_forward"))
    return x_BLH


def match(
    qformer: QFormer,
    text: TextBranch,
    visual_BPv: torch.Tensor,
    tokens_BL: torch.Tensor,
    mask_BL: torch.Tensor,
    noises: tuple[Noise, Noise],
) -> torch.Tensor:
    """Queries and text read each other, while the queries look at the image -> the queries' last hidden states
    [B, n, H]. `noises`: of the queries and of the text."""
    queries_BnH = qformer(len(tokens_BL), noises[0])
    count = queries_BnH.shape[1]
    x_BKH = torch.cat((queries_BnH, embedded(qformer, text, tokens_BL, noises[1])), dim=1)
    visual_BPv = qformer.vision_norm(visual_BPv)
    seen_B1K = F.pad(own_tokens(mask_BL), (count, 0), value=True)[:, None]
    both = noises[0].beside(noises[1])
    last = len(text.layers) - 1
    for i, (shared, own) in enumerate(zip(qformer.layers, text.layers, strict=True)):
        x_BKH, _ = shared.attention(x_BKH, None, seen_B1K, both.at(i, "attention"))
        queries_BnH = shared.after_attention(x_BKH[:, :count], visual_BPv, noises[0].at(i))
        if i < last:
            x_BKH = torch.cat((queries_BnH, own(x_BKH[:, count:], noises[1].at(i, "feed_forward"))), dim=1)
    return queries_BnH
