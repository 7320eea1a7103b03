"""LLaMA as Meta hands it out -> Hugging Face folders with the same logits, whatever number of pieces it came in."""

import json
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from stand_ins import write_meta
from transformers import LlamaConfig, LlamaForCausalLM

from dsmemvp.convert.convert import Options, convert
from dsmemvp.convert.meta_config import language_config
from dsmemvp.errors import UserError

TOKENS = torch.tensor([[1, 5, 9, 33, 2, 40, 17, 8]])


def _model(kv_heads: int = 4, **more) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2}
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=kv_heads, rms_norm_eps=1e-5, **sizes, **more)
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.normal_(1, 0.1)
    return model


def _logits(model_or_folder) -> torch.Tensor:
    model = model_or_folder
    if not isinstance(model, LlamaForCausalLM):
        model = LlamaForCausalLM.from_pretrained(model_or_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("cut_vocabulary", [False, True])
def test_any_number_of_pieces_gives_the_models_logits(tmp_path, kv_heads, cut_vocabulary):
    """Four pieces of two key/value heads: each head stands in two pieces."""
    model = _model(kv_heads)
    wanted = model.state_dict()
    for pieces in (1, 2, 4):
        write_meta(model, tmp_path / str(pieces), pieces, cut_vocabulary)
        convert(tmp_path / str(pieces), tmp_path / f"hf{pieces}")
        found = load_file(tmp_path / f"hf{pieces}" / "model.safetensors")
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert torch.equal(_logits(tmp_path / f"hf{pieces}"), _logits(model))


def test_tied_embeddings_are_written_once_whether_meta_wrote_them_or_not(tmp_path):
    model = _model(tie_word_embeddings=True)
    write_meta(model, tmp_path / "without", 2)
    write_meta(model, tmp_path / "with", 1)
    pieces = torch.load(tmp_path / "with" / "consolidated.00.pth")
    torch.save(
        pieces | {"output.weight": pieces["tok_embeddings.weight"].clone()}, tmp_path / "with" / "consolidated.00.pth"
    )
    for name in ("with", "without"):
        convert(tmp_path / name, tmp_path / f"{name}-hf")
        assert "lm_head.weight" not in load_file(tmp_path / f"{name}-hf" / "model.safetensors")
        assert torch.equal(_logits(tmp_path / f"{name}-hf"), _logits(model))


def test_small_files_another_type_and_the_tokenizer_beside(tmp_path):
    model = _model()
    write_meta(model, tmp_path / "meta" / "7B", 2)
    (tmp_path / "meta" / "tokenizer.model").write_bytes(b"\x0a\x0bsentencepiece")
    said = convert(tmp_path / "meta" / "7B", tmp_path / "hf", Options(dtype="bf16", shard_bytes=20_000))
    assert said == [f"21 tensors of the language model -> {tmp_path / 'hf'}"]
    assert (tmp_path / "hf" / "tokenizer.model").read_bytes() == b"\x0a\x0bsentencepiece"
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("hf/*.safetensors"))
    assert len(files) > 2 and set(index["weight_map"].values()) == {f.name for f in files}
    assert index["metadata"]["total_size"] == sum(2 * p.numel() for p in model.parameters())
    stored = {name: t for f in files for name, t in load_file(f).items()}
    assert all(torch.equal(stored[name], t.to(torch.bfloat16)) for name, t in model.state_dict().items())
    assert LlamaForCausalLM.from_pretrained(tmp_path / "hf").dtype == torch.bfloat16


def test_a_tokenizer_of_llama_3_is_not_taken_for_a_sentencepiece_model(tmp_path):
    write_meta(_model(), tmp_path / "meta")
    (tmp_path / "meta" / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    assert any("is tiktoken's and not copied" in line for line in convert(tmp_path / "meta", tmp_path / "hf"))
    assert not (tmp_path / "hf" / "tokenizer.model").exists()


# params.json of Meta's downloads -> the numbers in the config.json that Hugging Face has of the same models
LLAMA_1_13B = {"dim": 5120, "multiple_of": 256, "n_heads": 40, "n_layers": 40, "norm_eps": 1e-06, "vocab_size": -1}
LLAMA_2_70B = {"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8}
LLAMA_2_70B |= {"n_layers": 80, "norm_eps": 1e-05, "vocab_size": -1}
LLAMA_3_8B = {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "multiple_of": 1024}
LLAMA_3_8B |= {"ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500000.0}
LLAMA_32_1B = {"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "multiple_of": 256}
LLAMA_32_1B |= {"ffn_dim_multiplier": 1.5, "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True}
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}


@pytest.mark.parametrize(
    ("params", "vocabulary", "tied", "inner", "kv_heads", "places", "rope"),
    [
        (LLAMA_1_13B, 32000, False, 13824, 40, 2048, {"rope_type": "default", "rope_theta": 10000.0}),
        (LLAMA_2_70B, 32000, False, 28672, 8, 4096, {"rope_type": "default", "rope_theta": 10000.0}),
        (LLAMA_3_8B, 128256, False, 14336, 8, 8192, {"rope_type": "default", "rope_theta": 500000.0}),
        ({**LLAMA_3_8B, "use_scaled_rope": True}, 128256, False, 14336, 8, 131072, SCALED),
        (LLAMA_32_1B, 128256, True, 8192, 8, 131072, {**SCALED, "factor": 32.0}),
    ],
)
def test_the_configuration_is_the_one_on_hugging_face(params, vocabulary, tied, inner, kv_heads, places, rope):
    config = language_config(params, vocabulary, tied)
    assert (config.intermediate_size, config.num_key_value_heads) == (inner, kv_heads)
    assert (config.max_position_embeddings, config.rope_parameters) == (places, rope)
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (
        vocabulary,
        params["dim"],
        params["n_layers"],
    )
    assert (config.rms_norm_eps, config.tie_word_embeddings) == (params["norm_eps"], tied)
    assert (config.bos_token_id, config.eos_token_id) == ((128000, 128001) if vocabulary > 100000 else (1, 2))


def test_scaled_rotary_angles_are_those_of_the_published_rule(tmp_path):
    """Llama 3.1: wave lengths over 8192 / 1 are 8 times as long, those under 8192 / 4 as they are, smooth between."""
    write_meta(_model(), tmp_path / "meta", use_scaled_rope=True, rope_theta=500000.0)
    convert(tmp_path / "meta", tmp_path / "hf")
    found = LlamaForCausalLM.from_pretrained(tmp_path / "hf").model.rotary_emb.inv_freq
    wanted = []
    for i in range(4):  # heads of width 8
        frequency = 500000.0 ** (-2 * i / 8)
        turns = 8192 * frequency / (2 * math.pi)
        smooth = min(1.0, max(0.0, (turns - 1) / (4 - 1)))
        wanted.append((1 - smooth) * frequency / 8 + smooth * frequency)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-6, atol=0)
    assert _logits(tmp_path / "hf").isfinite().all()


def test_pieces_that_are_missing_or_of_another_model_are_told(tmp_path):
    write_meta(_model(), tmp_path / "meta", 4)
    folder = tmp_path / "meta"
    last = folder / "consolidated.03.pth"
    kept = last.read_bytes()
    last.unlink()
    with pytest.raises(
        ValueError, match=r"is not whole .*embed_tokens\.weight has shape \(48, 24\) instead of \(48, 32\)"
    ):
        convert(folder, tmp_path / "hf")
    (folder / "consolidated.01.pth").rename(last)
    with pytest.raises(UserError, match=r"consolidated\.01\.pth does not exist; the folder holds 3 pieces"):
        convert(folder, tmp_path / "hf")
    (folder / "consolidated.01.pth").write_bytes(kept[:-100])
    with pytest.raises(UserError, match=r"consolidated\.01\.pth cannot be read as weights: it is cut off"):
        convert(folder, tmp_path / "hf")
    tensors = torch.load(last)
    torch.save({**tensors, "layers.7.ffn_norm.weight": torch.ones(32)}, folder / "consolidated.01.pth")
    with pytest.raises(UserError, match=r"are not pieces of one model: only one has layers\.7\.ffn_norm"):
        convert(folder, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("[1]", "is not Meta's params.json"),
        ('{"dim": 32, "n_layers": 2}', "is not Meta's params.json (KeyError('n_heads'))"),
        ('{"dim": 32, "n_layers": 2, "n_heads": 5, "norm_eps": 1e-5}', "are no sizes of a LLaMA"),
        (
            '{"dim": 32, "n_layers": 3, "n_heads": 4, "norm_eps": 1e-5, "multiple_of": 96}',
            "layers.2.self_attn.q_proj.weight is missing",
        ),
        ('{"dim": 32, "n_layers": 2, "n_heads": 4, "norm_eps": 1e-5, "multiple_of": 64}', "instead of (128, 32)"),
    ],
)
def test_params_that_do_not_fit_are_told(tmp_path, content, part):
    write_meta(_model(), tmp_path / "meta")
    (tmp_path / "meta" / "params.json").write_text(content)
    with pytest.raises(UserError) as error:
        convert(tmp_path / "meta", tmp_path / "hf")
    assert part in str(error.value)


def test_copies_of_a_head_that_differ_are_told(tmp_path):
    write_meta(_model(kv_heads=2), tmp_path / "meta", 4)
    path = tmp_path / "meta" / "consolidated.03.pth"
    tensors = torch.load(path)
    tensors["layers.1.attention.wk.weight"] += 1
    torch.save(tensors, path)
    with pytest.raises(UserError, match=r"layers\.1\.attention\.wk\.weight: 2 pieces in a row should hold copies"):
        convert(tmp_path / "meta", tmp_path / "hf")
    assert list((tmp_path / "hf").iterdir()) == []


MEASURED = """
import sys
from pathlib import Path
from dsmemvp.convert.convert import convert

def status(key):
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0])

Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew; getrusage's would be the parent's
before = status("VmRSS")
convert(Path(sys.argv[1]), Path(sys.argv[2]))
print(status("VmHWM") - before)
"""


def test_memory_is_that_of_a_few_tensors(tmp_path):
    """325 MB in two pieces, the largest tensor 12 MB; some 77 MB were seen, first uses of libraries among them."""
    sizes = {"vocab_size": 2048, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6}
    write_meta(LlamaForCausalLM(LlamaConfig(num_attention_heads=8, **sizes)), tmp_path / "meta", 2)
    size = sum(path.stat().st_size for path in tmp_path.glob("meta/*.pth"))
    assert size > 250e6
    command = [sys.executable, "-c", MEASURED, tmp_path / "meta", tmp_path / "hf"]
    grown = 1024 * int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < size / 2, f"{grown / 1e6:.0f} MB"
