"""A run with P-Former through all of its stages, on two ranks with ZeRO-3, and what an evaluation of it has."""

import json

import pytest
import torch
from launch import launch, run_on_ranks
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from dsmemvp.checkpoints.choosing import newest_checkpoint
from dsmemvp.cli.main import main

MODULE = ["--module", "dsmemvp"]


def _losses(run) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key.split("/")[0] in ("step", "loss", "measure")}
        for line in lines
        if "loss/train" in line or "measure/reference_loss" in line
    ]


@pytest.mark.slow
@pytest.mark.ranks
def test_all_stages_on_two_ranks_stopped_in_one_and_answered(pformer_run, tmp_path, capsys):
    given = [*pformer_run, f"output={tmp_path / 'runs'}"]
    said = run_on_ranks(MODULE, 2, "train", *given)
    whole = _losses(tmp_path / "runs" / "pformer")
    reference = [line for line in whole if "measure/reference_loss" in line]
    assert [line["step"] for line in reference] == [7, 9], said
    whole = [line for line in whole if line not in reference]
    assert len(whole) == 3 + 3 + 3 + 6, said
    steps = {"text": whole[:3], "align": whole[3:6], "generate": whole[6:9], "finetune": whole[9:]}
    for name, keys in {
        "text": {"loss/contrast", "loss/vocabulary", "loss/language", "measure/variance", "measure/reconstructed"},
        "align": {"loss/itc", "loss/itm", "loss/itg", "loss/align", "measure/cosine"},
        "generate": {"loss/align", "loss/language", "measure/cosine"},
        "finetune": set(),
    }.items():
        assert all(keys <= line.keys() for line in steps[name]), (name, steps[name][0].keys())

    for step in (5, 0):  # tests/fault_tolerance/test_faults_in_stages.py kills it in every stage
        run_on_ranks(MODULE, 2, "train", *given, "name=stopped", f"training.stop_at_step={step}")
    stopped = _losses(tmp_path / "runs" / "stopped")
    assert [line for line in stopped if line in reference] == reference
    assert [line for line in stopped if line not in reference] == whole

    last, _ = newest_checkpoint(tmp_path / "runs" / "pformer")
    with safe_open(last.trained, "pt") as file:
        assert {name.split(".")[1] for name in file.keys()} == {"qformer", "projection"}  # noqa: SIM118, it is no dict
    assert main(["evaluate", *given, "evaluation.captions=[false]"]) == 0
    assert "captions off" in capsys.readouterr().out


def test_a_quantised_base_cached_features_and_scaled_rates_go_with_stages(pformer_run, tmp_path, tokenizer):
    """In all four stages at once: features in the place of pixels change no loss, a rate of another's moves them."""
    sizes = {"hidden_size": 64, "intermediate_size": 192, "vocab_size": tokenizer.vocabulary}
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=2))
    base.save_pretrained(tmp_path / "base")
    given = [*pformer_run, f"output={tmp_path / 'runs'}", "method.reference_steps=0", "training.micro_batch=8"]
    given += ["stages.finetune.training.micro_batch=8", "method.dropout=0"]  # whose masks follow from what is read
    given += [f"model.language_model={tmp_path / 'base'}", "model.quantize=int8"]
    scaled = ["training.scaled_tensors=[method.pformer.]", "training.scaled_rate=0.5"]
    scaled += ["stages.align.training.scaled_tensors=[method.pairs.,method.text.]"]
    run_on_ranks(MODULE, 1, "train", *given, *scaled, "name=pixels")
    cached = [*given, *scaled, "vision.cache_features=features"]
    said = run_on_ranks(MODULE, 1, "train", *cached, "name=cached")
    assert "features of" in said and "once" in said
    pixels = _losses(tmp_path / "runs" / "pixels")
    assert len(pixels) == 3 + 3 + 3 + 6 and _losses(tmp_path / "runs" / "cached") == pixels
    run_on_ranks(MODULE, 1, "train", *given, "name=plain", "training.stop_at_step=2")
    plain = _losses(tmp_path / "runs" / "plain")
    assert plain[0] == pixels[0] and plain[1] != pixels[1]

    wrong = {"training.scaled_tensors": "method.pformr.", "stages.align.training.scaled_tensors": "method.pformer."}
    for key, start in wrong.items():
        done = launch(MODULE, 1, "train", *given, f"{key}=[{start}]", "name=wrong")
        assert done.returncode == 1 and "Traceback" not in done.stdout, done.stdout
        assert f"{key}: no trained tensor's name begins with '{start}'; one is method." in done.stdout
