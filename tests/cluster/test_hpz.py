"""Hierarchical partitioning over two nodes of two ranks trains as flat ZeRO-3 does: its copies inside a node are those
of the base that was loaded."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

STEPS = 6


def test_hpz_has_the_losses_of_flat_zero3(slurm, demo, repository, tmp_path):
    losses = {}
    for name in ("zero3", "zero3_hpz"):
        settings = json.loads((repository / "ds_configs" / f"{name}.json").read_text())
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        (tmp_path / f"{name}.json").write_text(json.dumps(settings))
        command = ["srun", "--nodes=2", "--ntasks-per-node=2", "python", "-m", "dsmemvp", *demo, f"name={name}"]
        command += [f"training.deepspeed={tmp_path / name}.json", f"training.stop_at_step={STEPS}"]
        slurm.run(*command)
        losses[name] = _losses(tmp_path / "runs" / name / "metrics.jsonl")
    assert list(losses["zero3"]) == list(range(1, STEPS + 1))
    assert losses["zero3_hpz"] == pytest.approx(losses["zero3"], abs=1e-6)


def _losses(path: Path) -> dict[int, float]:
    return {row["step"]: row["loss/train"] for row in map(json.loads, path.read_text().splitlines())}
