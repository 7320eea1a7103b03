"""A text encoder (BERT) as a tower, of transformers' own parts under its names, stepped as a decoder is (decoder.py):
`start` -> `layers[i]` -> `finish`. It reads packed samples in both directions, and has no head of its own.

T tokens in the pack, B samples, L the longest, H heads, D head width, d width, S supervised tokens.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer

from dsmemvp.backbones.attention import Packing
from dsmemvp.backbones.decoder import Branch, no_branch
from dsmemvp.backbones.linear import with_own_linears
from dsmemvp.backbones.recompute import Policy, run_again
from dsmemvp.dropout import Dropout
from dsmemvp.host_values import from_host

ENCODERS: dict[str, Any] = {"bert": BertConfig}
"""Configurations by model_type"""
LIGHT: tuple[Policy, ...] = ("none", "elementwise")
"""Policies of gradient checkpointing under which a block keeps what torch keeps; under the others, its input alone."""


class TextBlock(nn.Module):
    def __init__(self, config: Any):
        super().__init__()
        layer: Any = with_own_linears(BertLayer(config))
        self.attention, self.intermediate, self.output = layer.attention, layer.intermediate, layer.output
        self.heads = config.num_attention_heads

    def forward(
        self,
        hidden_1Td: torch.Tensor,
        rotary: None,
        packing: Packing,
        branch: Branch = no_branch,
        dropout: Dropout | None = None,
        policy: Policy = "none",
        rows_S: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """-> [1, T, d], or of the rows that are wanted [1, S, d]. It has no place for a branch."""
        run = self._run if policy in LIGHT else lambda *given: run_again(self._run, *given)
        out_1Td = run(hidden_1Td, packing)
        return out_1Td if rows_S is None else out_1Td[:, rows_S]

    def _run(self, hidden_1Td: torch.Tensor, packing: Packing) -> torch.Tensor:
        own = getattr(self.attention, "self")  # noqa: B009, transformers' name of a part
        projected = (linear(hidden_1Td[0]) for linear in (own.query, own.key, own.value))
        query, key, value = (t.unflatten(-1, (self.heads, -1)) for t in projected)
        mixed_Td = attend_both_ways(query, key, value, packing).flatten(1)
        middle = self.attention.output(mixed_Td[None], hidden_1Td)
        return self.output(self.intermediate(middle), middle)


def attend_both_ways(
    query_THD: torch.Tensor, key_THD: torch.Tensor, value_THD: torch.Tensor, packing: Packing
) -> torch.Tensor:
    """-> [T, H, D]: a token reads all tokens of its own sample; a hidden one is read by itself alone."""
    lengths, device = packing.lengths, query_THD.device
    longest, start = packing.longest, 0
    places: list[int] = []
    rows: list[list[int]] = []
    for b, length in enumerate(lengths):
        rows.append([start + min(i, length - 1) for i in range(longest)])
        places += range(b * longest, b * longest + length)
        start += length
    row_BL = from_host(rows, device)
    seen_B1L = (torch.arange(longest, device=device) < from_host(lengths, device)[:, None])[:, None]
    if packing.hidden is not None:
        seen_B1L = seen_B1L & ~packing.hidden[row_BL][:, None]
        seen_B1L = seen_B1L | torch.eye(longest, dtype=torch.bool, device=device)
    query, key, value = (t[row_BL].transpose(1, 2) for t in (query_THD, key_THD, value_THD))
    mixed_BHLD = F.scaled_dot_product_attention(query, key, value, attn_mask=seen_B1L[:, None])
    return mixed_BHLD.transpose(1, 2).flatten(0, 1)[from_host(places, device)]


class TextEncoder(nn.Module):
    def __init__(self, config: Any):
        super().__init__()
        self.config = without_dropout(config)
        self.embeddings: Any = BertEmbeddings(self.config)
        del self.embeddings.position_ids, self.embeddings.token_type_ids  # both are given
        self.layers: Any = nn.ModuleList(TextBlock(self.config) for _ in range(config.num_hidden_layers))

    @property
    def depth(self) -> int:
        return len(self.layers)

    def start(self, tokens_T: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
        """-> [1, T, d]; all tokens are of type 0."""
        kinds = torch.zeros_like(tokens_T)
        return self.embeddings(tokens_T[None], token_type_ids=kinds[None], position_ids=positions_T[None])

    def rotary(self, positions_T: torch.Tensor, dtype: torch.dtype) -> None:
        return None

    def finish(self, hidden_Sd: torch.Tensor) -> torch.Tensor:
        """The last block ends in a norm."""
        return hidden_Sd

    def norms(self) -> Iterator[Any]:
        """None of the decoder's kind."""
        return iter(())


def without_dropout(config: Any) -> Any:
    """A frozen encoder has none."""
    config = copy.deepcopy(config)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return config
