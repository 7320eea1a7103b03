"""Real processes, stopped and killed in the middle of an epoch, resume with other ranks and workers."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch import launch, run_on_ranks

MODULE = ["--module", "dsmemvp"]


@pytest.fixture
def demo(repository, tokenizer_path, demo_shards, tiny_models) -> list[str]:
    """`train recipes/demo.yaml` on the tests' own small data and models: 6 steps per epoch."""
    settings = [f"model.language_model={tiny_models / 'language_model'}", f"model.tokenizer={tokenizer_path}"]
    settings += [f"model.vision_tower={tiny_models / 'vision_tower'}", f"data.train={demo_shards}"]
    settings += ["data.max_length=160", "data.record_order=true", "training.global_batch=8", "training.micro_batch=4"]
    settings += ["training.log_every=1", "training.learning_rate=1e-3", "method.dropout=0.1", "vision.adapter_dim=8"]
    return ["train", str(repository / "recipes" / "demo.yaml"), *settings]


def _order(output: Path) -> dict[int, list[int]]:
    rows = map(json.loads, (output / "demo" / "order.jsonl").read_text().splitlines())
    return {row["step"]: row["samples"] for row in rows}


def _losses(output: Path) -> dict[int, float]:
    rows = map(json.loads, (output / "demo" / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss/train"] for row in rows}


def _kill_after_step_13(arguments: list[str]) -> None:
    """One rank without a launcher, killed as soon as the checkpoint of step 13 is there."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    output = Path(next(a for a in arguments if a.startswith("output=")).partition("=")[2])
    running = subprocess.Popen([sys.executable, "-m", "dsmemvp", *arguments], env=environment)
    until = time.monotonic() + 120
    while not (output / "demo" / "checkpoints" / "step-00000013").exists():
        assert running.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    running.kill()
    running.wait()


@pytest.mark.ranks
def test_a_run_that_was_stopped_and_killed_sees_the_batches_of_one_that_was_not(demo, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_on_ranks(MODULE, 2, *demo, f"output={whole}", "training.stop_at_step=20")
    run_on_ranks(MODULE, 2, *demo, f"output={parts}", "training.stop_at_step=7")
    assert list(_order(parts)) == list(range(1, 8))
    same = tmp_path / "same"
    shutil.copytree(parts, same)
    run_on_ranks(MODULE, 2, *demo, f"output={same}", "training.stop_at_step=10", "data.workers=0")
    _kill_after_step_13([*demo, f"output={parts}", "training.checkpoint_steps=13", "data.workers=0"])
    said = run_on_ranks(MODULE, 2, *demo, f"output={parts}", "training.stop_at_step=20", "data.workers=2")
    assert "resuming after step 13" in said or "resuming after step 18" in said

    uninterrupted, seen = _order(whole), _order(parts)
    assert list(seen) == list(range(1, 21))
    assert seen == uninterrupted
    for epoch in range(3):
        samples = [n for step in range(epoch * 6 + 1, epoch * 6 + 7) for n in seen[step]]
        assert sorted(samples) == list(range(48))
    losses, expected = _losses(parts), _losses(whole)
    assert list(losses) == list(range(1, 21))
    # on the same ranks the same to the last bit, dropout included
    assert _losses(same) == {step: expected[step] for step in range(1, 11)}

    # the order belongs to the run: what would change it is refused
    for setting, key in (("seed=1", "seed: is 1, was 0"), ("training.global_batch=16", "training.global_batch")):
        refused = launch(MODULE, 1, *demo, f"output={parts}", setting)
        assert refused.returncode != 0 and key in refused.stdout and "Traceback" not in refused.stdout
