"""A checkpoint of two ranks under ZeRO-3 resumes with another number of ranks, and under other ways of sharding, with
the same losses, dropout included."""

import json
import shutil
from pathlib import Path

import pytest
from launch import run_on_ranks

MODULE = ["--module", "dsmemvp"]
SETTINGS = ["name=run", "training.global_batch=12", "training.micro_batch=1", "training.log_every=1"]
SETTINGS += ["method.dropout=0.3", "vision.adapter_dropout=0.3", "training.learning_rate=2e-3", "training.epochs=3"]
STOP, END = 5, 8


def _train(recipe: Path, ranks: int, output: Path, sharding: str, until: int, *settings: str) -> dict[int, float]:
    settings = (f"training.deepspeed=ds_configs/{sharding}.json", f"training.stop_at_step={until}", *settings)
    run_on_ranks(MODULE, ranks, "train", str(recipe), f"output={output}", *SETTINGS, *settings)
    rows = map(json.loads, (output / "run" / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss/train"] for row in rows}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Filled by the first test that needs it: (folder of the run stopped at STOP, losses of the run that was not)."""
    return tmp_path_factory.mktemp("begun"), {}


@pytest.mark.faults
@pytest.mark.parametrize("sharding", ["zero3", "replicated"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_it_goes_on_as_if_nothing_had_changed(recipe_path, tmp_path, begun, ranks, sharding):
    folder, expected = begun
    if not expected:
        _train(recipe_path, 2, folder, "zero3", STOP)
        expected.update(_train(recipe_path, 2, tmp_path / "whole", "zero3", END))
    shutil.copytree(folder, tmp_path / "on")
    losses = _train(recipe_path, ranks, tmp_path / "on", sharding, END)
    assert list(losses) == list(range(1, END + 1))
    if (ranks, sharding) == (2, "zero3"):
        assert losses == expected
    assert losses == pytest.approx(expected, rel=1e-6)
    assert expected[END] < expected[1] - 0.01  # it learns, so equality says something


@pytest.mark.faults
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_way_of_sharding_trains_alike(recipe_path, tmp_path, dtype):
    """hpZ and offload gather the same values, so to the last bit; a replicated base sums gradients in another order."""
    losses = {
        sharding: _train(recipe_path, 2, tmp_path / sharding, sharding, 6, f"model.dtype={dtype}")
        for sharding in ("zero3", "zero3_hpz", "zero3_offload", "replicated")
    }
    assert losses["zero3_hpz"] == losses["zero3"] == losses["zero3_offload"]
    assert losses["replicated"] == pytest.approx(losses["zero3"], rel=1e-6 if dtype == "fp32" else 1e-3)
