"""The language model: transformers' LLaMA parts, in decoder layers of our own that call a visual prompting method at
its points (prompts/interface.py). With no method the logits are transformers' own, bit for bit.

Parameter names are transformers' without the leading "model.". B samples, L places, d width, S supervised places.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache, LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from dsmemvp.backbones.recompute import run_layer
from dsmemvp.data.batch import Batch
from dsmemvp.prompts import VisualPrompt
from dsmemvp.prompts.interface import State


@dataclass(frozen=True)
class Step:
    """One forward of decoding with a key/value cache: the first reads the prompts, each later one a token per sample.
    Padding stands on the left, so that all samples go on at the same place."""

    cache: Cache
    """Keys and values of the C places before, which this forward's are added to."""
    positions: torch.Tensor
    """[B, L] int64: each place's position in its own sample"""
    mask: torch.Tensor | None = None
    """[B, C + L]: nonzero where there is a token or slot, zero for padding; None where nothing is padded"""
    state: State | None = None
    """What an earlier forward made of the images; None: this one does."""


class DecoderLayer(nn.Module):
    def __init__(self, config: LlamaConfig, index: int):
        super().__init__()
        self.index = index
        self.self_attn = LlamaAttention(config, index)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_BLd: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        state: State,
        method: VisualPrompt,
        batch: Batch,
        mask: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        hidden_BLd = method.enter_layer(self.index, hidden_BLd, state, batch)
        # without a mask the attention backend applies causality itself: no [L, L] mask exists
        attended = self.self_attn(
            self.input_layernorm(hidden_BLd), position_embeddings=rotary, attention_mask=mask, past_key_values=cache
        )
        hidden_BLd = hidden_BLd + attended[0]
        x_BLd = self.post_attention_layernorm(hidden_BLd)
        out_BLd = self.mlp(x_BLd)
        memory = method.feed_forward(self.index, x_BLd, state)
        if memory is not None:
            out_BLd = out_BLd + memory
        return hidden_BLd + out_BLd


class LanguageModel(nn.Module):
    """A batch -> float32 logits [S, vocabulary] at its supervised places only."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        config._attn_implementation = "sdpa"
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers: Any = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.recompute = False

    def apply_replacements(self, method: VisualPrompt) -> None:
        """Put the method's own linear layers (LoRA) where it wants them."""
        for layer in self.layers:
            for parent in (layer.self_attn, layer.mlp):
                for name, child in list(parent.named_children()):
                    new = method.replacement(name, child) if isinstance(child, nn.Linear) else None
                    if new is not None:
                        setattr(parent, name, new)

    def forward(self, batch: Batch, state: State, method: VisualPrompt, step: Step | None = None) -> torch.Tensor:
        embedded_Td = self.embed_tokens(batch.tokens)
        B, L, d = batch.size, batch.length, embedded_Td.shape[-1]
        hidden = embedded_Td.new_zeros(B * L, d).index_copy(0, batch.place, embedded_Td).view(B, L, d)
        rotary = self._rotary(hidden, step)
        attention = (attention_mask(step, L), step.cache) if step else ()
        for layer in self.layers:
            hidden = run_layer(layer, self.recompute, hidden, rotary, state, method, batch, *attention)
        hidden_Sd = hidden.flatten(0, 1)[batch.supervised]
        return self.lm_head(self.norm(hidden_Sd)).float()

    def _rotary(self, hidden_BLd: torch.Tensor, step: Step | None) -> tuple[torch.Tensor, torch.Tensor]:
        # made anew each time (a few thousand numbers), since a module's buffer would be cast to 16 bits with the model
        with torch.device(hidden_BLd.device):
            positions = step.positions if step else torch.arange(hidden_BLd.shape[1])[None]
            return LlamaRotaryEmbedding(self.config)(hidden_BLd, positions)


def attention_mask(step: Step, length: int) -> torch.Tensor | None:
    """[B, 1, L, C + L] bool: which places each of this forward's `length` places sees. None where nothing is padded:
    the attention backend then applies causality itself."""
    if step.mask is None:
        return None
    seen = torch.arange(step.mask.shape[1], device=step.mask.device)
    own = seen[-length:, None]
    # a padded place sees itself, so that no softmax is over nothing; nobody sees it
    return (((seen <= own) & step.mask.bool()[:, None]) | (seen == own))[:, None]
