"""BERT's parts over padded rows, with dropout whose masks follow from counters (dropout.py): P-Former and the Q-Former
are both made of them. Their mathematics is transformers' own.

B rows, L tokens, Q queries and K keys of an attention, H width, h heads, D their width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dsmemvp.backbones.linear import Linear
from dsmemvp.dropout import Dropout

KeysValues = tuple[torch.Tensor, torch.Tensor]
"""[B, h, K, D] each"""


@dataclass(frozen=True)
class Noise:
    """Dropout of one place, with one key for each token of its rows; without keys, none."""

    p: float = 0.0
    keys_BL: torch.Tensor | None = None

    def at(self, *place: object) -> "Noise":
        return self if self.keys_BL is None else Noise(self.p, Dropout(self.keys_BL).at(*place).keys)

    def of(self, rows: Any) -> "Noise":
        """Of some of the rows, or of some tokens."""
        return self if self.keys_BL is None else Noise(self.p, self.keys_BL[rows])

    def copies(self, place: str, count: int) -> "Noise":
        """Of so many copies of all rows, one below another."""
        if self.keys_BL is None:
            return self
        return Noise(self.p, torch.cat([Dropout(self.keys_BL).at(place, i).keys for i in range(count)]))

    def beside(self, other: "Noise") -> "Noise":
        """Of rows that are longer by the other one's tokens."""
        if self.keys_BL is None or other.keys_BL is None:
            return self
        return Noise(self.p, torch.cat((self.keys_BL, other.keys_BL), dim=1))

    def __call__(self, x_BLH: torch.Tensor) -> torch.Tensor:
        return x_BLH if self.keys_BL is None else Dropout(self.keys_BL)(x_BLH.contiguous(), self.p)


class Attention(nn.Module):
    """With its residual and norm."""

    def __init__(self, config: Any, context_width: int = 0):
        """`context_width`: of what it reads in place of its own input."""
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query = Linear(width, width)
        self.key = Linear(context_width or width, width)
        self.value = Linear(context_width or width, width)
        self.out = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(
        self,
        x_BQH: torch.Tensor,
        context_BKH: torch.Tensor | None = None,
        seen: torch.Tensor | None = None,
        noise: Noise = Noise(),
        past: KeysValues | None = None,
    ) -> tuple[torch.Tensor, KeysValues]:
        """`context_BKH`: what it reads; None: its own input. `seen`: bool, [B or 1, Q or 1, K], `past` included; None:
        all. `past`: keys and values in front of its own. -> [B, Q, H], and its own keys and values."""
        source = x_BQH if context_BKH is None else context_BKH
        query, key, value = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.query(x_BQH), self.key(source), self.value(source))
        )
        own = key, value
        if past is not None:
            key, value = (torch.cat(pair, dim=2) for pair in zip(past, own, strict=True))
        mask = None if seen is None else seen[:, None]
        if noise.keys_BL is None:
            mixed_BhQD = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            mixed_BhQD = _dropped_attention(query, key, value, mask, noise.at("weights"))
        out_BQH = self.out(mixed_BhQD.transpose(1, 2).flatten(2))
        return self.norm(x_BQH + noise.at("out")(out_BQH)), own


def _dropped_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, noise: Noise
) -> torch.Tensor:
    scores_BhQK = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    scores_BhQK = scores_BhQK.to(torch.promote_types(scores_BhQK.dtype, torch.float32))
    if mask is not None:
        scores_BhQK = scores_BhQK.masked_fill(~mask, -torch.inf)
    weights_BQhK = scores_BhQK.softmax(-1).transpose(1, 2)
    kept = noise(weights_BQhK.flatten(2)).view(weights_BQhK.shape)
    return kept.transpose(1, 2).to(value.dtype) @ value


class FeedForward(nn.Module):
    """With its residual and norm."""

    def __init__(self, config: Any):
        super().__init__()
        self.up = Linear(config.hidden_size, config.intermediate_size)
        self.down = Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_BLH: torch.Tensor, noise: Noise) -> torch.Tensor:
        return self.norm(x_BLH + noise.at("out")(self.down(F.gelu(self.up(x_BLH)))))


class Layer(nn.Module):
    def __init__(self, config: Any):
        super().__init__()
        self.attention, self.feed_forward = Attention(config), FeedForward(config)


class Embeddings(nn.Module):
    def __init__(self, config: Any):
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.kinds = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, tokens_BL: torch.Tensor, noise: Noise) -> torch.Tensor:
        """All tokens are of kind 0."""
        places_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        summed = self.words(tokens_BL) + self.kinds(torch.zeros_like(tokens_BL)) + self.positions(places_L)
        return noise(self.norm(summed))


class ClassEncoder(nn.Module):
    """BERT without its pooler, for its class vector alone."""

    def __init__(self, config: Any):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers: Any = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, tokens_BL: torch.Tensor, mask_BL: torch.Tensor, noise: Noise) -> torch.Tensor:
        """-> [B, H]. Of the last layer only [CLS] is computed."""
        x_BLH, seen = self.embeddings(tokens_BL, noise.at("embeddings")), own_tokens(mask_BL)[:, None]
        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            wanted = x_BLH[:, :1] if last else x_BLH
            inside = (noise.of((slice(None), slice(1))) if last else noise).at(i)
            x_BLH, _ = layer.attention(wanted, x_BLH, seen, inside.at("attention"))
            x_BLH = layer.feed_forward(x_BLH, inside.at("feed_forward"))
        return x_BLH[:, 0]


def own_tokens(mask_BL: torch.Tensor) -> torch.Tensor:
    """What attention may read: a row of padding alone reads its first token, so that it has some value."""
    first_L = torch.arange(mask_BL.shape[1], device=mask_BL.device) == 0
    return mask_BL | first_L


def initialise(module: nn.Module, std: float) -> None:
    """As BERT begins."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
