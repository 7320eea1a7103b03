"""Whole runs on a quantised base: every way of sharding, checkpoint, resuming, evaluation, answers, other bases."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from launch import launch, run_on_ranks
from making import picture
from transformers import LlamaConfig, LlamaForCausalLM

import dsmemvp
from dsmemvp.errors import UserError

MODULE = ["--module", "dsmemvp"]
SETTINGS = ["name=run", "training.global_batch=8", "training.micro_batch=2", "training.log_every=1"]
SETTINGS += ["training.learning_rate=2e-3", "training.epochs=3", "training.warmup_epochs=0"]
SETTINGS += ["method.dropout=0.3", "vision.adapter_dropout=0.3", "model.dtype=bf16"]
STOP, END = 5, 8


@pytest.fixture(scope="module")
def language_models(tmp_path_factory, tokenizer) -> Path:
    """Two random ones in widths that are multiples of 64."""
    folder, sizes = tmp_path_factory.mktemp("language"), {"hidden_size": 64, "intermediate_size": 192}
    sizes |= {"vocab_size": tokenizer.vocabulary, "num_hidden_layers": 2, "num_attention_heads": 2}
    for seed, name in enumerate(("base", "other")):
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder / name)
    return folder


def _train(recipe: Path, models: Path, ranks: int, output: Path, sharding: str, until: int, *more: str):
    settings = [*SETTINGS, f"training.deepspeed=ds_configs/{sharding}.json", f"training.stop_at_step={until}"]
    settings += [f"model.language_model={models / 'base'}", f"output={output}", *more]
    said = run_on_ranks(MODULE, ranks, "train", str(recipe), *settings)
    rows = map(json.loads, (output / "run" / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss/train"] for row in rows}, said


@pytest.mark.faults
@pytest.mark.parametrize(("form", "method"), [("int8", "memvp"), ("nf4", "input_space")])
def test_every_way_of_sharding_trains_alike_and_near_the_whole_base(
    recipe_path, language_models, tmp_path, form, method
):
    ways = [("zero3", 1), ("zero3", 2), ("zero3_hpz", 2), ("replicated", 2), ("replicated", 1)]
    more = (f"model.quantize={form}", f"method.name={method}")
    losses = {
        (sharding, ranks): _train(
            recipe_path, language_models, ranks, tmp_path / f"{sharding}-{ranks}", sharding, 6, *more
        )[0]
        for sharding, ranks in ways
    }
    whole, _ = _train(recipe_path, language_models, 1, tmp_path / "whole", "zero3", 6, f"method.name={method}")
    assert losses["zero3_hpz", 2] == losses["zero3", 2]
    for way in ways:
        assert losses[way] == pytest.approx(losses["zero3", 1], rel=1e-3), way
    assert whole != losses["zero3", 1] == pytest.approx(whole, rel=0.01)
    assert whole[6] < whole[1] - 0.01  # it learns, so nearness says something


@pytest.mark.ranks
def test_a_run_resumes_is_scored_and_answers_on_the_base_it_was_trained_on(recipe_path, language_models, tmp_path):
    more = ("model.quantize=int8", "method.name=input_space")
    _train(recipe_path, language_models, 2, tmp_path / "on", "zero3", STOP, *more)
    shutil.copytree(tmp_path / "on", tmp_path / "plain")
    losses, said = _train(recipe_path, language_models, 1, tmp_path / "on", "replicated", END, *more)
    assert f"resuming after step {STOP}" in said and "warning" not in said
    whole, _ = _train(recipe_path, language_models, 2, tmp_path / "whole", "zero3", END, *more)
    assert losses == pytest.approx(whole, rel=1e-3)

    # on the same base in 16 bits it resumes with a warning; on another one it does not
    plain, said = _train(recipe_path, language_models, 1, tmp_path / "plain", "replicated", END, more[1])
    assert said.count("warning: model.quantize: is none, and ") == 1 and "was trained with int8" in said
    assert plain[END] == pytest.approx(losses[END], rel=0.01) and plain[END] != losses[END]
    other = [*SETTINGS, *more, f"output={tmp_path / 'on'}", f"model.language_model={language_models / 'other'}"]
    refused = launch(MODULE, 1, "train", str(recipe_path), *other)
    assert refused.returncode != 0 and "was trained on another one" in refused.stdout

    run = tmp_path / "on" / "run"
    scored = [*SETTINGS, *more, f"output={tmp_path / 'on'}", f"model.language_model={language_models / 'base'}"]
    said = run_on_ranks(MODULE, 2, "evaluate", str(recipe_path), *scored, "evaluation.protocol=likelihood")
    assert (run / "evaluation-likelihood.json").is_file() and "warning" not in said

    model = dsmemvp.load(run)
    linear = model._model.language.layers[0].mlp.down_proj
    assert linear.weight.dtype == torch.uint8 and linear.weight.shape == (64, 192)
    (tmp_path / "picture.png").write_bytes(picture())
    answer = model.answer("What colour is the star?", tmp_path / "picture.png", max_new_tokens=4)
    assert isinstance(answer, str)
    with pytest.warns(UserWarning, match=r"model\.quantize: is none, .* was trained with int8"):
        dsmemvp.load(run, **{"model.quantize": "none"})
    with pytest.raises(UserError, match="was trained on another one"):
        dsmemvp.load(run, language_model=str(language_models / "other"))


@pytest.mark.ranks
def test_float8_on_cpus_is_refused_in_one_line(recipe_path, language_models, tmp_path):
    settings = [*SETTINGS, "model.quantize=fp8", f"model.language_model={language_models / 'base'}"]
    refused = launch(MODULE, 1, "train", str(recipe_path), *settings, f"output={tmp_path}")
    assert refused.returncode != 0 and "Traceback" not in refused.stdout
    assert "model.quantize: fp8 needs an NVIDIA GPU with float8 products" in refused.stdout
