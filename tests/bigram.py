"""A language model that writes what it is told: the next token follows from the last one alone."""

import itertools
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dsmemvp.data.tokenizer import Tokenizer


def write_bigram_model(folder: Path, tokenizer: Tokenizer, text: str) -> Path:
    """A LLaMA that goes on behind "The answer is" with `text` and ends; after any other token it ends. No token may
    come twice in them."""
    size = -(-tokenizer.vocabulary // 4) * 4
    config = LlamaConfig(
        vocab_size=tokenizer.vocabulary,
        hidden_size=size,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    lead = tokenizer.encode("The answer is")
    tokens = [lead[-1], *tokenizer.encode(f"The answer is{text}")[len(lead) :], tokenizer.eos]
    assert len(set(tokens)) == len(tokens)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1)
        one_of = torch.eye(size)[: tokenizer.vocabulary]
        model.model.embed_tokens.weight.copy_(one_of)
        model.lm_head.weight[tokenizer.eos] = 1
        for last, following in itertools.pairwise(tokens):
            model.lm_head.weight[following] += 2 * one_of[last]
    model.save_pretrained(folder)
    return folder
