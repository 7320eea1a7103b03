"""The language model as a tower: transformers' own parts under transformers' names, stepped block by block:
`start` -> `blocks[i]` -> `finish` -> `head`. Without anything added the logits are transformers' own, bit for bit.

Parameter names are transformers' without the leading "model.". T tokens in the pack, d width, S supervised tokens,
V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dsmemvp.backbones.attention import NAME, Packing
from dsmemvp.backbones.families import decoder_family

Branch = Callable[[torch.Tensor], torch.Tensor | None]
"""The feed-forward's normed input [1, T, d] -> what is added to its output, or None."""
Rotary = tuple[torch.Tensor, torch.Tensor]


def no_branch(x: torch.Tensor) -> None:
    return None


class DecoderBlock(nn.Module):
    """A decoder layer of the family, whose parts it takes over, with a branch beside the feed-forward."""

    def __init__(self, config: Any, index: int):
        super().__init__()
        layer = decoder_family(config).block(config, index)
        self.self_attn = layer.self_attn
        self.mlp = layer.mlp
        self.input_layernorm = layer.input_layernorm
        self.post_attention_layernorm = layer.post_attention_layernorm

    def forward(
        self, hidden_1Td: torch.Tensor, rotary: Rotary, packing: Packing, branch: Branch = no_branch
    ) -> torch.Tensor:
        """-> [1, T, d]"""
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_1Td), position_embeddings=rotary, attention_mask=None, packing=packing
        )
        hidden_1Td = hidden_1Td + attended
        x_1Td = self.post_attention_layernorm(hidden_1Td)
        out_1Td = self.mlp(x_1Td)
        added = branch(x_1Td)
        if added is not None:
            out_1Td = out_1Td + added
        return hidden_1Td + out_1Td


class DecoderTower(nn.Module):
    def __init__(self, config: Any):
        """`config` is of one of the families (families.py); raises UserError for another."""
        super().__init__()
        family = decoder_family(config)
        config._attn_implementation = NAME
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers: Any = nn.ModuleList(DecoderBlock(config, i) for i in range(config.num_hidden_layers))
        self.norm = family.norm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    @property
    def depth(self) -> int:
        return len(self.layers)

    def start(self, tokens_T: torch.Tensor) -> torch.Tensor:
        """-> [1, T, d]"""
        return self.embed_tokens(tokens_T)[None]

    def rotary(self, positions_T: torch.Tensor, dtype: torch.dtype) -> Rotary:
        """cos and sin, [1, T, head width] each. Made anew each time (a few thousand numbers), since a module's buffer
        would be cast to 16 bits with the model."""
        with torch.device(positions_T.device):
            embedding = decoder_family(self.config).rotary(self.config)
            return embedding(torch.empty(0, dtype=dtype), positions_T[None])

    def finish(self, hidden_Sd: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden_Sd)

    def head(self, normed_Sd: torch.Tensor) -> torch.Tensor:
        """-> float32 logits [S, V]"""
        return self.lm_head(normed_Sd).float()

    def replace_linears(self, replacement: Callable[[str, nn.Linear], nn.Linear | None]) -> None:
        """Put a method's own linear layers (LoRA) in place of a block's: `replacement(name, linear)` gives one, or
        None to keep the old."""
        for layer in self.layers:
            for parent in (layer.self_attn, layer.mlp):
                for name, child in list(parent.named_children()):
                    new = replacement(name, child) if isinstance(child, nn.Linear) else None
                    if new is not None:
                        setattr(parent, name, new)
