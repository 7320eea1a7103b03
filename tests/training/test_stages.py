"""Stages, a method's own losses and callbacks, by a toy method (programs/toy_run.py) in real runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launch import run_on_ranks
from safetensors.torch import load_file

from dsmemvp.checkpoints.checkpoint import State, save_checkpoint
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.errors import UserError
from dsmemvp.training.preparation import agreed_origin

PROGRAM = Path(__file__).parents[1] / "programs" / "toy_run.py"
PER_EPOCH, FIRST, LAST = 6, 6, 15
"""Steps: of an epoch, at the end of the first stage, and at the end of the run."""


@pytest.fixture(scope="module")
def overrides(demo_shards) -> list[str]:
    given = ["method={name: toy}", "training.epochs=7", "training.weight_decay=0.1", "training.global_batch=8"]
    given += ["training.micro_batch=2", "training.learning_rate=1e-2", "training.warmup_epochs=0"]
    return [*given, "training.log_every=1", "training.keep_last=0", "data.record_order=true"]


def _file(recipe: Path, runs: list[list[str]]) -> Path:
    """A recipe without the keys of another method, and the runs to make of it."""
    import yaml

    content = yaml.safe_load(recipe.read_text())
    content["method"] = {"name": "toy"}
    recipe.write_text(yaml.safe_dump(content))
    path = recipe.with_suffix(".json")
    path.write_text(json.dumps([[str(recipe), run] for run in runs]))
    return path


def _alone(recipe: Path, *runs: list[str]) -> str:
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(_file(recipe, list(runs)))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _trained(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "trained.safetensors")


def _state(run: Path, step: int) -> dict:
    return json.loads((run / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())


def _rows(run: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


def _same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], part: str = "") -> bool:
    return all(torch.equal(left[name], right[name]) for name in left if name.startswith(part))


def test_each_stage_moves_its_own_tensors_alone_and_a_run_resumes_in_and_between_them(recipe_path, overrides, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    stops = [2, FIRST, 9]
    own = [*overrides, "training.checkpoint_steps=1"]
    runs = [[*own, f"output={whole}"]]
    runs += [[*own, f"output={parts}", f"training.stop_at_step={stop}"] for stop in stops]
    said = _alone(recipe_path, *runs, [*own, f"output={parts}"])
    assert f"stage second: steps {FIRST + 1} to {LAST}" in said

    run = whole / "tiny"
    values = {step: _trained(run, step) for step in (1, FIRST, FIRST + 1, LAST)}
    assert set(values[1]) == {f"method.{stage}.{name}" for stage in ("first", "second") for name in ("weight", "bias")}
    # neither weight decay nor moments nor the last gradient of its own stage move what a stage does not train
    assert _same(values[1], values[FIRST], "method.second") and not _same(values[1], values[FIRST], "method.first")
    assert _same(values[FIRST], values[LAST], "method.first")
    assert not _same(values[FIRST], values[FIRST + 1], "method.second")
    assert [_state(run, step)["updates"] for step in (1, FIRST, FIRST + 1, LAST)] == [1, 6, 1, 9]
    assert [_state(run, step)["epoch"] for step in (5, FIRST, 11, 12, LAST)] == [0, 1, 1, 2, 2]

    # order and learning rate begin anew with the second stage, which is one and a half epochs long
    metrics, order = _rows(run, "metrics"), [row["samples"] for row in _rows(run, "order")]
    assert [row["step"] for row in metrics] == list(range(1, LAST + 1))
    rates = [row["training/learning_rate"] for row in metrics]
    assert rates[0] == rates[FIRST] == 1e-2 and rates[FIRST - 1] < 2e-3 and rates[LAST - 1] < 1e-3
    assert order[:PER_EPOCH] == order[FIRST : FIRST + PER_EPOCH] != order[FIRST + PER_EPOCH :]
    assert ["loss/size" in row for row in metrics] == [False] * FIRST + [True] * (LAST - FIRST)

    # stopped inside the first stage, at its end, and inside the second: as if it had not been
    for step in (1, FIRST, FIRST + 1, LAST):
        assert _same(values[step], _trained(parts / "tiny", step))
        assert _state(parts / "tiny", step)["callbacks"] == [{"steps": list(range(1, step + 1))}]
    losses = [[row["loss/train"] for row in _rows(folder / "tiny", "metrics")] for folder in (whole, parts)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_stage_reads_its_own_data_and_other_stages_are_another_run(recipe_path, overrides, demo_shards, tmp_path):
    import shutil

    shutil.copytree(demo_shards, tmp_path / "more")
    own = [*overrides, f"data.train=[{demo_shards},{tmp_path / 'more'}]", f"method.second={tmp_path / 'more'}"]
    own += ["training.global_batch=16"]
    said = _alone(recipe_path, own)
    assert "stage first: steps 1 to 6" in said and "stage second: steps 7 to 10" in said  # 1.5 epochs of 3 steps
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    for changed, message in (
        (f"method.second={tmp_path / 'none'}", "data.train: a stage of method toy reads"),
        ('method.second=""', "method.second: is "),
    ):
        command = [sys.executable, str(PROGRAM), str(_file(recipe_path, [[*own, changed]]))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode != 0 and message in done.stderr


@pytest.mark.ranks
def test_losses_are_over_the_global_batch_and_stages_hold_on_two_ranks(recipe_path, overrides, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    _alone(recipe_path, [*overrides, f"output={one}", "training.micro_batch=8"])
    for name in ("zero3", "replicated"):
        deepspeed = Path(__file__).parents[2] / "ds_configs" / f"{name}.json"
        runs = [[*overrides, f"output={two / name}", f"training.deepspeed={deepspeed}"]]
        run_on_ranks(PROGRAM, 2, str(_file(recipe_path, runs)))
        run = two / name / "tiny"
        for left, right in zip(_rows(one / "tiny", "metrics"), _rows(run, "metrics"), strict=True):
            for key in ("loss/train", "loss/size", "loss/language", "training/gradient_norm"):
                assert (key in left) == (key in right)
                if key in left:
                    assert left[key] == pytest.approx(right[key], rel=1e-4), (name, left["step"], key)
        for step in (FIRST, LAST):
            for key, value in _trained(run, step).items():
                torch.testing.assert_close(value, _trained(one / "tiny", step)[key], atol=2e-4, rtol=1e-3)
        assert _same(_trained(run, FIRST), _trained(run, LAST), "method.first")


def test_the_loss_is_the_weighted_sum_of_the_language_models_and_the_methods(recipe_path, overrides, tmp_path):
    given = [*overrides, f"output={tmp_path}", "method.stages=1", "training.stop_at_step=2"]
    said = _alone(recipe_path, given)
    for row in _rows(tmp_path / "tiny", "metrics"):
        assert row["loss/train"] == pytest.approx(row["loss/language"] + 0.5 * row["loss/size"], rel=1e-6)
        assert row["loss/size"] > 0.1
    assert " size " in said and "unused" not in said


class Apart(Ranks):
    """Another rank that has found another checkpoint, and raised nothing."""

    def gather(self, lines):
        return [*lines, "runs/other/checkpoints/step-00000020/trained.safetensors"]

    def together(self, task):
        return task()


def test_ranks_that_find_different_checkpoints_to_start_from_are_told(tmp_path):
    """A run that still trains saves while they look."""
    other = tmp_path / "other"
    save_checkpoint(other, State(step=10, recipe={}), {"a": torch.zeros(4)}, {})
    span: Any = SimpleNamespace(first=0, start_from=str(other), name="b")
    recipe = SimpleNamespace(method=SimpleNamespace(name="memvp"))
    context: Any = SimpleNamespace(ranks=Ranks(0, 1, torch.device("cpu")), recipe=recipe, folder=tmp_path)
    (found,) = agreed_origin(span, [span], context, {}).found
    assert found.trained.parent.name == "step-00000010"
    context.ranks = Apart(0, 2, torch.device("cpu"))
    with pytest.raises(UserError, match="the ranks found different checkpoints, since the run that start_from names"):
        agreed_origin(span, [span], context, {})
