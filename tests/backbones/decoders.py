"""Tiny decoders of every family with random weights, ours and transformers' own beside each other."""

from dataclasses import replace

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dsmemvp.backbones.configs import Configs
from dsmemvp.data.batch import Batch, Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.model import VisualLanguageModel

SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "attn_implementation": "sdpa"}
LLAMA_31 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA_31 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
GROUPED = {"num_key_value_heads": 2}
CASES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama, grouped queries, other rotary base": (
        LlamaConfig,
        LlamaForCausalLM,
        GROUPED | {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    ),
    "llama, rotary scaling of 3.1": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA_31}),
    "llama, tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "mistral": (MistralConfig, MistralForCausalLM, GROUPED | {"sliding_window": None}),
    "mistral, window longer than the text": (MistralConfig, MistralForCausalLM, GROUPED | {"sliding_window": 64}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, GROUPED | {"tie_word_embeddings": False}),
    "qwen2, tied": (Qwen2Config, Qwen2ForCausalLM, GROUPED | {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, GROUPED | {"head_dim": 16}),
    "qwen3, tied": (Qwen3Config, Qwen3ForCausalLM, GROUPED | {"head_dim": 8, "tie_word_embeddings": True}),
}


def pair(case: str, dtype: torch.dtype = torch.float32):
    """-> ours without vision tower and method, and transformers', of the same weights."""
    config, theirs, changes = CASES[case]
    torch.manual_seed(0)
    stock = theirs(config(**SIZES | changes)).eval()
    with torch.no_grad():
        for p in stock.parameters():  # away from the initial zeros and ones of biases and norms
            p.add_(torch.randn_like(p) * 0.05)
    stock = stock.to(dtype)
    # transformers' table of rotary frequencies must not be rounded with the weights; ours never is
    stock.model.rotary_emb = type(stock.model.rotary_emb)(stock.config)
    ours = VisualLanguageModel(Configs(config(**SIZES | changes), None), sees_images=False).eval().to(dtype)
    weights = {name.removeprefix("model."): t for name, t in stock.state_dict().items()}
    ours.language.load_state_dict(weights)
    return ours, stock


def random_texts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 50, (length,), generator=generator).tolist() for length in lengths]


def batch_of(texts: list[list[int]]) -> Batch:
    """The logits of every token are wanted."""
    batch = make_batch([Item(i, EncodedText(text, 1, False), None) for i, text in enumerate(texts)], resolution=8).batch
    everywhere = torch.arange(len(batch.tokens))
    return replace(batch, supervised=everywhere, targets=torch.zeros_like(everywhere), supervised_counts=batch.lengths)
