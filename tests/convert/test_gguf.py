"""GGUF files that the package gguf has written become folders that transformers and this package read alike."""

import json

import pytest
import torch
from model_files import HEADS, KEYS, PIECES, byte_level, write_gguf
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dsmemvp.convert.convert import Options, convert
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.errors import UserError


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


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_the_model_that_was_written(tmp_path, tied):
    model = _model(tied)
    write_gguf(tmp_path / "m.gguf", model)
    convert(tmp_path / "m.gguf", tmp_path / "new")
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        ours = LlamaForCausalLM.from_pretrained(tmp_path / "new")
        assert torch.equal(ours(tokens).logits, model(tokens).logits)
    assert ours.config.tie_word_embeddings == tied and ours.config.rms_norm_eps == 1e-5


@pytest.mark.parametrize("quantised", ["Q8_0", "Q4_1", "F16"])
def test_blocks_are_dequantised_as_transformers_does(tmp_path, quantised):
    write_gguf(tmp_path / "m.gguf", _model(), quantised)
    convert(tmp_path / "m.gguf", tmp_path / "new", Options(dtype="fp32"))
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ours = LlamaForCausalLM.from_pretrained(tmp_path / "new", dtype=torch.float32).state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, ours[name]), name


def test_types_are_kept_or_chosen(tmp_path):
    write_gguf(tmp_path / "m.gguf", _model(), "Q8_0")
    convert(tmp_path / "m.gguf", tmp_path / "keep")
    convert(tmp_path / "m.gguf", tmp_path / "bf16", Options(dtype="bf16"))
    said = [json.loads((tmp_path / name / "config.json").read_text())["dtype"] for name in ("keep", "bf16")]
    assert said == ["float32", "bfloat16"]


def test_a_byte_level_vocabulary_becomes_a_tokenizer(tmp_path):
    """Digits stand alone in SmolLM2's tokenizer, merges or not."""
    write_gguf(tmp_path / "m.gguf", _model())
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

    write_gguf(tmp_path / "m.gguf", _model(vocabulary=tokenizer.vocabulary), vocabulary=vocabulary)
    convert(tmp_path / "m.gguf", tmp_path / "new")
    ours = Tokenizer(tmp_path / "new" / "tokenizer.model")
    for text in ("Question: What colour is the circle?\nResponse:The answer is red.", "  two  spaces", "émigré 7"):
        assert ours.encode(text) == tokenizer.encode(text)
    assert (ours.bos, ours.eos) == (tokenizer.bos, tokenizer.eos)


def test_a_vocabulary_that_is_not_known_is_left_out_with_a_word(tmp_path):
    def vocabulary(writer, size):
        byte_level(writer, size)
        writer.kv_data[0]["tokenizer.ggml.pre"].value = "chinese"

    write_gguf(tmp_path / "m.gguf", _model(), vocabulary=vocabulary)
    said = convert(tmp_path / "m.gguf", tmp_path / "new")
    assert "is not read; a recipe needs the model's own tokenizer.json" in said[1]
    assert not (tmp_path / "new" / "tokenizer.json").exists()


def test_what_is_no_whole_plain_llama_is_told(tmp_path):
    write_gguf(tmp_path / "qwen.gguf", _model(), arch="qwen2")
    write_gguf(tmp_path / "scaled.gguf", _model(), llama__rope__scaling__type="yarn")
    write_gguf(tmp_path / "m.gguf", _model())
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
