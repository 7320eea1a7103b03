"""Folders with pytorch_model*.bin, written by torch as transformers used to, become what transformers writes now."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM

from dsmemvp.convert.convert import convert
from dsmemvp.errors import UserError

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize("tied", [False, True])
def test_a_llama_in_several_files(tmp_path, tied):
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=2, tie_word_embeddings=tied, **SIZES))
    model.config.save_pretrained(tmp_path / "old")
    state = model.state_dict() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    for part in range(2):
        names = sorted(state)[part::2]
        torch.save(
            {name: state[name] for name in names}, tmp_path / "old" / f"pytorch_model-{part + 1:05d}-of-00002.bin"
        )
    (tmp_path / "old" / "tokenizer.model").write_bytes(b"tokens")
    convert(tmp_path / "old", tmp_path / "new")
    assert (tmp_path / "new" / "tokenizer.model").read_bytes() == b"tokens"
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        logits = LlamaForCausalLM.from_pretrained(tmp_path / "new")(tokens).logits
        assert torch.equal(logits, model(tokens).logits)
    (tmp_path / "old" / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match=r"is not whole or not of the sizes it claims: .* is missing"):
        convert(tmp_path / "old", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_tower_of_a_whole_clip(tmp_path):
    config = CLIPConfig(
        vision_config={**SIZES, "image_size": 32, "patch_size": 8}, text_config={**SIZES, "vocab_size": 40}
    )
    model = CLIPModel(config)
    config.save_pretrained(tmp_path / "old")
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    convert(tmp_path / "old", tmp_path / "new")
    stored = load_file(tmp_path / "new" / "model.safetensors")
    tower = {name.removeprefix("vision_model."): t for name, t in model.vision_model.state_dict().items()}
    tower.pop("embeddings.position_ids", None)
    assert stored.keys() == tower.keys() and all(torch.equal(stored[name], t) for name, t in tower.items())
    assert json.loads((tmp_path / "new" / "config.json").read_text())["model_type"] == "clip_vision_model"


def test_a_folder_that_is_none_is_told(tmp_path):
    (tmp_path / "old").mkdir()
    torch.save({}, tmp_path / "old" / "pytorch_model.bin")
    (tmp_path / "old" / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(UserError, match="is of a 't5' model, neither LLaMA nor CLIP"):
        convert(tmp_path / "old", tmp_path / "new")
    (tmp_path / "old" / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"source: .*config\.json is a None model"):
        convert(tmp_path / "old", tmp_path / "new")
    shutil.rmtree(tmp_path / "old")
    with pytest.raises(UserError, match="does not exist"):
        convert(tmp_path / "old", tmp_path / "new")
