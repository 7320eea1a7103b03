"""MemVP as its published code computes it, written anew from the paper's mathematics and a description of that code: a
baseline for speed. It is built of transformers' LLaMA and CLIP blocks, and knows nothing of this package.

What is different from this package, and what the comparison is about:
- samples are rows padded to the longest; the causal mask is a matrix that is added to the scores, softmax in float32
- the vision tower runs on every row, on zeros for a sample without image, and its features are multiplied by 0
- every layer adds the positions to the padded image features once more, in float32, and casts the sums to 16 bits, so
  that it keeps keys and values of its own, and the gradients of all layers are added one by one
- logits of all places, padding included; the loss leaves out those of prompt and padding

The parameters have the names of this package, so that one can be filled from the other; both then have the same loss
but for dropout and rounding. B samples, L places, d width, P image tokens, N slots, V vocabulary, R resolution.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPVisionEmbeddings
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

VISUAL_SCALE, OUTPUT_SCALE, DROPOUT, HIDDEN, ADAPTER_DIM, ADAPTER_SCALE = 0.01, 0.1, 0.1, 128, 12, 0.1
IGNORED = 0
"""The token of padding, as which the targets of prompts are marked, too."""


class Published(nn.Module):
    def __init__(self, language: Any, vision: Any, slots: int, dtype: torch.dtype):
        """`language` and `vision` are LlamaConfig and CLIPVisionConfig. Frozen weights are of `dtype`, trained ones
        of float32."""
        super().__init__()
        self.language, self.vision = _Language(language).to(dtype), _Vision(vision).to(dtype)
        self.requires_grad_(False)
        self.vision.add_adapters(vision.hidden_size)
        patches = (vision.image_size // vision.patch_size) ** 2
        self.method = _Memory(patches, slots, vision.hidden_size, language.hidden_size)

    def forward(self, tokens_BL: torch.Tensor, images_B3RR: torch.Tensor, has_image_B: torch.Tensor) -> torch.Tensor:
        """-> logits [B, L, V]; `images_B3RR` is normalised, of the frozen weights' type, and zero in rows without
        image."""
        with _autocast(images_B3RR):
            visual_BPd = self.method.project(self.vision(images_B3RR))
        visual_BPd = visual_BPd * has_image_B[:, None, None] * VISUAL_SCALE
        empty = visual_BPd.new_zeros(len(visual_BPd), self.method.padding, visual_BPd.shape[2])
        return self.language(tokens_BL, torch.cat([visual_BPd, empty], dim=1), self.method)


def loss(logits_BLV: torch.Tensor, targets_BL: torch.Tensor) -> torch.Tensor:
    """The mean over supervised tokens, in the logits' type; targets lie where their tokens do, else IGNORED."""
    return F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), targets_BL[:, 1:].flatten(), ignore_index=IGNORED)


class _Memory(nn.Module):
    """What all layers share: the projector and the positions of keys and values."""

    def __init__(self, patches: int, slots: int, vision_width: int, width: int):
        super().__init__()
        self.projector = nn.ModuleDict({"fc1": nn.Linear(vision_width, HIDDEN), "fc2": nn.Linear(HIDDEN, width)})
        self.key_positions = nn.Parameter(torch.randn(slots, width) * 0.02)
        self.value_positions = nn.Parameter(torch.zeros(slots, width))
        self.padding = slots - patches

    def project(self, features_BPv: torch.Tensor) -> torch.Tensor:
        return self.projector["fc2"](F.silu(self.projector["fc1"](features_BPv)))

    def forward(self, x_BLd: torch.Tensor, memory_BNd: torch.Tensor) -> torch.Tensor:
        """What one layer's feed-forward adds to its output, [B, L, d]."""
        key_BNd, value_BNd = memory_BNd + self.key_positions, memory_BNd + self.value_positions
        with _autocast(x_BLd):
            active_BLN = F.dropout(F.silu(x_BLd @ key_BNd.transpose(1, 2)), DROPOUT, self.training)
            return OUTPUT_SCALE * (active_BLN @ value_BNd)


class _Language(nn.Module):
    def __init__(self, config: Any):
        super().__init__()
        config._attn_implementation = "eager"  # adds the mask, softmax in float32
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers: Any = nn.ModuleList(LlamaDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.config = config

    def forward(self, tokens_BL: torch.Tensor, memory_BNd: torch.Tensor, method: _Memory) -> torch.Tensor:
        hidden_BLd = self.embed_tokens(tokens_BL)
        length = tokens_BL.shape[1]
        mask_LL = hidden_BLd.new_full((length, length), float("-inf")).triu(1)
        rotary = LlamaRotaryEmbedding(self.config)(hidden_BLd, torch.arange(length)[None])
        for layer in self.layers:
            normed_BLd = layer.input_layernorm(hidden_BLd)
            attended, _ = layer.self_attn(normed_BLd, position_embeddings=rotary, attention_mask=mask_LL[None, None])
            hidden_BLd = hidden_BLd + attended
            x_BLd = layer.post_attention_layernorm(hidden_BLd)
            hidden_BLd = hidden_BLd + layer.mlp(x_BLd) + method(x_BLd, memory_BNd)
        return self.lm_head(self.norm(hidden_BLd))


class _Vision(nn.Module):
    """All blocks but the last; every one with a trained adapter beside its feed-forward."""

    def __init__(self, config: Any):
        super().__init__()
        config._attn_implementation = "sdpa"
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers: Any = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers - 1))
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def add_adapters(self, width: int) -> None:
        for layer in self.layers:
            down, up = nn.Linear(width, ADAPTER_DIM, bias=False), nn.Linear(ADAPTER_DIM, width, bias=False)
            layer.adapter = nn.ModuleDict({"down": down, "up": up})

    def forward(self, images_B3RR: torch.Tensor) -> torch.Tensor:
        """-> [B, P, v]"""
        hidden = self.pre_layrnorm(self.embeddings(images_B3RR))
        for layer in self.layers:
            hidden = hidden + layer.self_attn(layer.layer_norm1(hidden), attention_mask=None)[0]
            x = layer.layer_norm2(hidden)
            inner = F.dropout(F.gelu(layer.adapter["down"](x)), DROPOUT, self.training)
            hidden = hidden + layer.mlp(x) + ADAPTER_SCALE * layer.adapter["up"](inner)
        return self.post_layernorm(hidden[:, 1:])


def _autocast(x: torch.Tensor) -> torch.autocast:
    """Trained weights are float32 beside frozen ones of 16 bits."""
    return torch.autocast("cpu", x.dtype, enabled=x.dtype != torch.float32)
