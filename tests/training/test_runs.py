"""Whole runs through the command line and the deepspeed launcher, on one and two ranks."""

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launch import launch, run_on_ranks
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsmemvp.data.index import index_shard
from dsmemvp.data.manifest import read_manifest, write_manifest

MODULE = ["--module", "dsmemvp"]
NO_DROPOUT = ["method.dropout=0.0", "vision.adapter_dropout=0.0"]
CURVE = [*NO_DROPOUT, "training.epochs=4", "training.global_batch=8", "training.micro_batch=2", "training.log_every=1"]
# large enough for a loss that falls, small enough that rounding is not blown up to something visible in 24 steps
CURVE += ["method.visual_scale=0.1", "method.output_scale=1.0", "training.learning_rate=2e-3"]


def _train(recipe: Path, ranks: int, output: Path, *overrides: str, launcher: bool = False) -> str:
    given = ("train", str(recipe), f"output={output}", "name=run", *overrides)
    return run_on_ranks(MODULE, ranks, *given, launcher=launcher)


def _losses(output: Path) -> dict[int, float]:
    lines = (output / "run" / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss/train"] for row in map(json.loads, lines)}


def _checkpoint(output: Path, step: int) -> Path:
    return output / "run" / "checkpoints" / f"step-{step:08d}"


def _trained(output: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(_checkpoint(output, step) / "trained.safetensors")


@pytest.mark.ranks
def test_one_and_two_ranks_agree_and_a_run_goes_on_from_a_checkpoint_on_either(recipe_path, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    before = set(Path("/dev/shm").glob("deepspeed_*"))
    _train(recipe_path, 1, one, *CURVE)
    _train(recipe_path, 2, two, *CURVE, launcher=True)
    assert set(Path("/dev/shm").glob("deepspeed_*")) <= before  # on a laptop its memory would fill, run by run
    alone, together = _losses(one), _losses(two)
    assert list(alone) == list(together) == list(range(1, 25))
    assert max(abs(alone[s] - together[s]) for s in alone) < 1e-4
    assert alone[24] < alone[1] - 0.1  # it learns, so the curves say something

    # both runs resume from the end of epoch 2, each with the other number of ranks
    for output, ranks in ((one, 2), (two, 1)):
        whole = _trained(output, 24)
        shutil.rmtree(_checkpoint(output, 18))
        shutil.rmtree(_checkpoint(output, 24))
        said = _train(recipe_path, ranks, output, *CURVE)
        assert "resuming after step 12" in said
        again = _losses(output)
        assert list(again) == list(range(1, 25))
        assert max(abs(alone[s] - again[s]) for s in again) < 1e-4
        for name, value in _trained(output, 24).items():
            torch.testing.assert_close(value, whole[name], atol=2e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.ranks
def test_bf16_input_space_and_recomputation_train_past_a_bad_sample_and_evaluate(
    recipe_path, demo_shards, repository, tmp_path
):
    spoiled = tmp_path / "shards"
    shutil.copytree(demo_shards, spoiled)
    key = _spoil_an_image(spoiled)
    settings = [f"data.train={spoiled}", f"data.test={spoiled}", "method.name=input_space", "model.dtype=bf16"]
    settings += ["training.recompute=auto", "training.activation_budget=0.002"]
    settings.append(
        f"training.deepspeed={repository / 'ds_configs' / 'replicated.json'}"
    )  # auto is refused under ZeRO-3
    settings += ["training.epochs=1", "training.log_every=1", "training.warmup_epochs=0"]
    settings += ["training.global_batch=8", "training.micro_batch=2"]
    strict = launch(MODULE, 2, "train", str(recipe_path), f"output={tmp_path}", "name=run", *settings)
    assert strict.returncode != 0
    assert f"sample {key}: image cannot be decoded" in strict.stdout
    assert "Traceback" not in strict.stdout

    said = _train(recipe_path, 2, tmp_path, *settings, "data.on_bad_sample=skip")
    assert "1 time a sample was left out" in said and "with images layers keep" in said
    assert "step 1: for" in said and said.count("layers keep 2 elementwise") == 2  # at the start, and never changed
    assert all(torch.isfinite(t).all() for t in _trained(tmp_path, 6).values())
    board = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [point.step for point in board.Scalars("loss/train")] == list(range(1, 7))
    assert set(board.Tags()["scalars"]) >= {
        "training/learning_rate",
        "training/gradient_norm",
        "speed/samples_per_second",
        "speed/tokens_per_second",
        "speed/tflops",
        "speed/peak_gib",
        "training/skipped_samples",
        "training/imbalance",
    }
    layers = {name: board.Scalars(name) for name in board.Tags()["scalars"] if "layers" in name}
    assert {name: [(p.step, p.value) for p in points] for name, points in layers.items()} == {
        "training/layers_elementwise": [(1, 2)]
    }
    groups = sorted({name.partition("/")[0] for name in board.Tags()["scalars"]})
    assert groups[0] == "loss" and all(group > "score" for group in groups[1:])  # as TensorBoard shows them
    *_, text = board.Tensors("recipe/text_summary")  # the strict run began, too
    shown = text.tensor_proto.string_val[0].decode()
    assert text.step == 0 and "    name: run\n" in shown and "      on_bad_sample: skip\n" in shown
    assert board.Scalars("training/skipped_samples")[-1].value == 1
    assert all(1 <= point.value < 2 for point in board.Scalars("training/imbalance"))
    (skipped,) = map(json.loads, (tmp_path / "run" / "skipped.jsonl").read_text().splitlines())
    assert f"sample {key}: image cannot be decoded" in skipped["sample"]

    overrides = ["evaluate", str(recipe_path), f"output={tmp_path}", "name=run", *settings]
    said = run_on_ranks(MODULE, 2, *overrides, "data.on_bad_sample=skip")
    assert "1 sample left out" in said
    assert "| captions off |" in said
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert set(scores["accuracy"]) == {"captions off", "captions on"}
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 2 * (scores["samples"] - scores["left_out"])

    # another shape, and another method, are refused
    for override, expected in (
        ("method.lora_rank=4", "method.lora_rank: is 4, but"),
        ("method.name=memvp", "method.name"),
    ):
        refused = launch(MODULE, 2, "train", str(recipe_path), f"output={tmp_path}", "name=run", *settings, override)
        assert refused.returncode != 0
        assert expected in refused.stdout
        assert "Traceback" not in refused.stdout


def _spoil_an_image(folder: Path) -> str:
    """Overwrite the first picture of the first shard; returns the sample's key."""
    path = folder / json.loads((folder / "dataset.json").read_text())["shards"][0]["name"]
    with tarfile.open(path) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith(".png"))
    with path.open("r+b") as file:
        file.seek(member.offset_data)
        file.write(b"\0" * member.size)
    manifest = read_manifest(folder)
    write_manifest(replace(manifest, shards=(index_shard(path), *manifest.shards[1:])))
    return member.name.removesuffix(".png")


@pytest.mark.ranks
def test_a_loss_that_is_not_finite_stops_both_ranks_before_the_update(recipe_path, tiny_models, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_models / "language_model", base)
    (path,) = base.glob("*.safetensors")
    tensors = load_file(path)
    tensors["model.norm.weight"] *= 3e38  # logits beyond float32
    save_file(tensors, path, metadata={"format": "pt"})
    settings = [f"output={tmp_path}", "name=run", f"model.language_model={base}", "training.most_not_finite=0"]
    done = launch(MODULE, 2, "train", str(recipe_path), *settings, launcher=True)
    assert done.returncode != 0
    assert "step 1: the loss is nan; nothing was updated" in done.stdout
    assert done.stdout.count("nothing was updated") == 1  # one rank speaks for both
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()
