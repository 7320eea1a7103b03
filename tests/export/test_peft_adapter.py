"""input_space's LoRA in peft: the same logits from transformers' own model with the folder on it, loaded as
docs/methods.md has it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dsmemvp.backbones.fingerprint import fingerprint
from dsmemvp.backbones.weights import Base, read_configs
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.checkpoints.checkpoint import State, save_checkpoint
from dsmemvp.cli import main as cli
from dsmemvp.config.reading import as_dict, read_recipe
from dsmemvp.data.batch import Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText

TOKENS = [1, 5, 9, 33, 7, 30, 41, 12]
LORA = ["method.name=input_space", "method.lora_rank=3", "method.lora_alpha=7"]


def _saved(run: Path, recipe_path, *settings: str):
    """A run's folder with random values in it, and its model."""
    recipe = read_recipe(recipe_path, settings)
    configs = read_configs(recipe)
    model = build_frozen(recipe, configs)
    Base(recipe).load(model)
    add_trainables(model, recipe, configs)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.trainables().values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    values = {name: p.detach() for name, p in model.trainables().items()}
    save_checkpoint(run, State(step=3, recipe=as_dict(recipe), base=fingerprint(Base(recipe))), values, {})
    return model.eval(), recipe


@pytest.mark.parametrize("targets", ["[q_proj, v_proj]", "[q_proj, k_proj, o_proj, gate_proj, down_proj]"])
def test_peft_computes_the_same_logits(recipe_path, tmp_path, capsys, targets):
    peft = pytest.importorskip("peft", reason="pip install 'dsmemvp[peft]'")
    model, recipe = _saved(tmp_path / "run", recipe_path, *LORA, f"method.lora_targets={targets}")
    assert cli.main(["export", "--run", str(tmp_path / "run"), "--peft", str(tmp_path / "peft")]) == 0
    said = capsys.readouterr().out
    assert "parameters of LoRA -> " in said and "beside the language model (method, vision)" in said

    base = AutoModelForCausalLM.from_pretrained(recipe.model.language_model, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    loaded = {name for name, _ in theirs.named_parameters() if "lora_" in name}
    assert len(loaded) == 2 * 2 * len(recipe.method.lora_targets)
    batch = make_batch([Item(0, EncodedText(TOKENS, 1, False), None)], 32, model.method.reserved()).batch
    with torch.no_grad():
        ours, _ = model(batch)
        expected = theirs(torch.tensor([TOKENS])).logits[0, : len(TOKENS) - 1]
        without = theirs.base_model.model.lm_head.weight.shape[0]
        with theirs.disable_adapter():
            plain = theirs(torch.tensor([TOKENS])).logits[0, : len(TOKENS) - 1]
    assert ours.shape == (len(TOKENS) - 1, without)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert (plain - expected).abs().max() > 0.1  # the adapter matters

    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 7)


def test_other_methods_and_folders_are_refused(recipe_path, tmp_path, capsys):
    _saved(tmp_path / "run", recipe_path)
    assert cli.main(["export", "--run", str(tmp_path / "run"), "--peft", str(tmp_path / "peft")]) == 1
    assert "--peft: method memvp trains no LoRA on the language model" in capsys.readouterr().err
    _saved(tmp_path / "lora", recipe_path, *LORA)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    assert cli.main(["export", "--run", str(tmp_path / "lora"), "--peft", str(tmp_path / "full")]) == 1
    assert "holds other things than a PEFT adapter" in capsys.readouterr().err
