"""Our decoder layers against transformers' own LlamaForCausalLM, and the memory branch's edges."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dsmemvp.backbones.decoder import DecoderTower
from dsmemvp.data.batch import Item, make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.prompts import Sizes, VisualPrompt
from dsmemvp.prompts.memvp import MemVP

SHAPES = {
    "llama-1": {},
    "grouped queries, other rotary base": {
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
    "llama-3.1 rotary scaling": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "tied embeddings": {"tie_word_embeddings": True},
}


def _pair(**changes) -> tuple[DecoderTower, LlamaForCausalLM]:
    config = LlamaConfig(
        **{"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
        | {"num_attention_heads": 4, "attn_implementation": "sdpa"}
        | changes
    )
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(config).eval()
    ours = DecoderTower(config).eval()
    weights = {name.removeprefix("model."): t for name, t in theirs.state_dict().items()}
    ours.load_state_dict(weights)
    return ours, theirs


def _batch(texts: list[list[int]]):
    """Every token but the last of each text supervised: its logits are wanted."""
    return make_batch([Item(i, EncodedText(text, 1, False), None) for i, text in enumerate(texts)], resolution=8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_no_method_the_logits_are_transformers_bit_for_bit(shape, dtype):
    ours, theirs = (model.to(dtype) for model in _pair(**SHAPES[shape]))
    # transformers' table of rotary frequencies must not be rounded with the weights; ours never is
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config)
    texts = torch.randint(1, 50, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mine = ours(_batch(texts.tolist()), (), VisualPrompt()).view(3, 19, 50)
        stock = theirs(input_ids=texts).logits[:, :-1].float()
    assert torch.equal(mine, stock)


def test_with_a_zero_memory_the_logits_are_transformers_bit_for_bit():
    ours, theirs = _pair()
    method = MemVP(Sizes(4, 8, 32), hidden=4, slots=6, visual_scale=0.01, output_scale=0.1, dropout=0.0)
    torch.nn.init.zeros_(method.key_positions)
    texts = torch.randint(1, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    batch = _batch(texts.tolist())
    with torch.no_grad():
        state = method(torch.zeros(1, 4, 8), batch)
        assert all(t.count_nonzero() == 0 for t in state)
        mine = ours(batch, state, method).view(2, 11, 50)
        assert torch.equal(mine, theirs(input_ids=texts).logits[:, :-1])


def test_padding_changes_no_logit():
    ours, theirs = _pair()
    texts = [[1, 5, 9, 3, 7, 2], [1, 8, 4], [1, 2, 3, 4]]
    with torch.no_grad():
        mine = ours(_batch(texts), (), VisualPrompt())
        stock = torch.cat([theirs(input_ids=torch.tensor([text])).logits[0, :-1] for text in texts])
    torch.testing.assert_close(mine, stock, atol=1e-6, rtol=1e-5)


def test_logits_are_made_at_supervised_places_only():
    ours, _ = _pair()
    rows = []
    ours.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape))
    item = Item(0, EncodedText(list(range(1, 21)), 17, False), None)
    ours(make_batch([item], resolution=8), (), VisualPrompt())
    assert rows == [(3, 50)]


def test_attention_is_called_without_a_mask():
    ours, _ = _pair()
    masks = []
    for layer in ours.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, inputs, named: masks.append(named["attention_mask"]), with_kwargs=True
        )
    ours(_batch([[1, 2, 3], [1, 2]]), (), VisualPrompt())
    assert masks == [None] * 3
