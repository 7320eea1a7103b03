"""GGUF files that the package gguf has written become folders that transformers and this package read alike."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dsmemvp.convert.convert import Options, convert
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.errors import UserError

gguf = pytest.importorskip("gguf", reason="the extra `real` (gguf, onnx) is not installed")
HEADS, KEYS = 4, 2
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers.": "blk.",
}


def _model(tied: bool = True, vocabulary: int = 96) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        rms_norm_eps=1e-5,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


def _pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's convert_hf_to_gguf.py reorders queries and keys."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _write(path, model, quantised="F32", vocabulary=None, **changed):
    config = model.config
    writer = gguf.GGUFWriter(str(path), changed.pop("arch", "llama"))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(50000.0)
    for name, value in changed.items():
        writer.add_string(name.replace("__", "."), value)
    (vocabulary or _byte_level)(writer, config.vocab_size)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        values = tensor.float().numpy()
        if "attn_q" in name or "attn_k" in name:
            values = np.ascontiguousarray(_pairs(values, HEADS if "attn_q" in name else KEYS))
        kind = gguf.GGMLQuantizationType[quantised if values.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


PIECES = ["<|endoftext|>", "<|im_end|>", *(chr(c) for c in range(33, 123)), "Ġ", "Ġa", "12", "ab"]


def _byte_level(writer, size):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(PIECES)
    writer.add_token_types([3, 3] + [1] * (len(PIECES) - 2))
    writer.add_token_merges(["Ġ a", "1 2", "a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_the_model_that_was_written(tmp_path, tied):
    model = _model(tied)
    _write(tmp_path / "m.gguf", model)
    convert(tmp_path / "m.gguf", tmp_path / "new")
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        ours = LlamaForCausalLM.from_pretrained(tmp_path / "new")
        assert torch.equal(ours(tokens).logits, model(tokens).logits)
    assert ours.config.tie_word_embeddings == tied and ours.config.rms_norm_eps == 1e-5


@pytest.mark.parametrize("quantised", ["Q8_0", "Q4_1", "F16"])
def test_blocks_are_dequantised_as_transformers_does(tmp_path, quantised):
    _write(tmp_path / "m.gguf", _model(), quantised)
    convert(tmp_path / "m.gguf", tmp_path / "new", Options(dtype="fp32"))
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ours = LlamaForCausalLM.from_pretrained(tmp_path / "new", dtype=torch.float32).state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, ours[name]), name


def test_types_are_kept_or_chosen(tmp_path):
    _write(tmp_path / "m.gguf", _model(), "Q8_0")
    convert(tmp_path / "m.gguf", tmp_path / "keep")
    convert(tmp_path / "m.gguf", tmp_path / "bf16", Options(dtype="bf16"))
    said = [json.loads((tmp_path / name / "config.json").read_text())["dtype"] for name in ("keep", "bf16")]
    assert said == ["float32", "bfloat16"]


def test_a_byte_level_vocabulary_becomes_a_tokenizer(tmp_path):
    """Digits stand alone in SmolLM2's tokenizer, merges or not."""
    _write(tmp_path / "m.gguf", _model())
    convert(tmp_path / "m.gguf", tmp_path / "new")
    ours, theirs = Tokenizer(tmp_path / "new" / "tokenizer.json"), AutoTokenizer.from_pretrained(tmp_path / "new")
    assert (ours.bos, ours.eos, ours.vocabulary) == (None, 1, len(PIECES))
    tokens = ours.encode("xab 12 a")
    assert [PIECES[token] for token in tokens] == ["x", "ab", "Ġ", "1", "2", "Ġa"]
    assert ours.decode(tokens) == "xab 12 a" and theirs.encode("xab 12 a", add_special_tokens=False) == tokens
    assert theirs.eos_token_id == 1


def test_a_sentencepiece_vocabulary_becomes_a_tokenizer(tmp_path, tokenizer_path, tokenizer):
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(str(tokenizer_path))

    def vocabulary(writer, size):
        writer.add_tokenizer_model("llama")
        writer.add_token_list([model.id_to_piece(i) for i in range(size)])
        writer.add_token_scores([model.get_score(i) for i in range(size)])
        kinds = [(model.is_unknown, 2), (model.is_control, 3), (model.is_byte, 6)]
        writer.add_token_types([next((n for test, n in kinds if test(i)), 1) for i in range(size)])
        writer.add_bos_token_id(model.bos_id())
        writer.add_eos_token_id(model.eos_id())
        writer.add_unk_token_id(model.unk_id())

    _write(tmp_path / "m.gguf", _model(vocabulary=tokenizer.vocabulary), vocabulary=vocabulary)
    convert(tmp_path / "m.gguf", tmp_path / "new")
    ours = Tokenizer(tmp_path / "new" / "tokenizer.model")
    for text in ("Question: What colour is the circle?\nResponse:The answer is red.", "  two  spaces", "émigré 7"):
        assert ours.encode(text) == tokenizer.encode(text)
    assert (ours.bos, ours.eos) == (tokenizer.bos, tokenizer.eos)


def test_a_vocabulary_that_is_not_known_is_left_out_with_a_word(tmp_path):
    def vocabulary(writer, size):
        _byte_level(writer, size)
        writer.kv_data[0]["tokenizer.ggml.pre"].value = "chinese"

    _write(tmp_path / "m.gguf", _model(), vocabulary=vocabulary)
    said = convert(tmp_path / "m.gguf", tmp_path / "new")
    assert "is not read; a recipe needs the model's own tokenizer.json" in said[1]
    assert not (tmp_path / "new" / "tokenizer.json").exists()


def test_what_is_no_whole_plain_llama_is_told(tmp_path):
    _write(tmp_path / "qwen.gguf", _model(), arch="qwen2")
    _write(tmp_path / "scaled.gguf", _model(), llama__rope__scaling__type="yarn")
    _write(tmp_path / "m.gguf", _model())
    content = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[:-100])
    (tmp_path / "short.gguf").write_bytes(content[:300])
    (tmp_path / "other.gguf").write_bytes(b"GG" + content[2:][::-1])
    at = content.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    (tmp_path / "long.gguf").write_bytes(content[:at] + b"\xff" * 8 + content[at + 8 :])
    for name, why in {
        "qwen": "is of a 'qwen2' model",
        "scaled": "scaled RoPE",
        "cut": "ends within its tensors",
        "short": "cut off or damaged",
        "other": "is not a GGUF file",
        "long": "cut off or damaged",
    }.items():
        with pytest.raises(UserError, match=why):
            convert(tmp_path / f"{name}.gguf", tmp_path / "new")
    assert not (tmp_path / "new").exists()
