"""What ranks open and read of the base when a run starts: each configuration and each header once per process, the
samples of its values once per node."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from launch import run_on_ranks, written
from transformers import LlamaConfig, LlamaForCausalLM

PROGRAMS = Path(__file__).parent.parent / "programs"
RANKS = 4


@pytest.mark.slow
@pytest.mark.ranks
def test_configurations_and_headers_are_read_once_and_the_base_is_known_once_per_node(
    recipe_path, tiny_models, tmp_path
):
    folder = tmp_path / "language"
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(tiny_models / "language_model")
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="40KB")
    content = yaml.safe_load(recipe_path.read_text())
    content["model"]["language_model"] = str(folder)
    recipe_path.write_text(yaml.safe_dump(content))
    run_on_ranks(PROGRAMS / "cold_start.py", RANKS, str(recipe_path), str(tmp_path / "found.json"), launcher=True)
    everyone = written(tmp_path / "found.json")
    assert len(everyone) == RANKS
    tower = tiny_models / "vision_tower"
    shards = [*folder.glob("*.safetensors"), *tower.glob("*.safetensors")]
    assert len(shards) > 3
    settings = [folder / "config.json", folder / "model.safetensors.index.json", tower / "config.json"]
    headers = {path: 8 + int.from_bytes(path.read_bytes()[:8], "little") for path in shards}
    of_headers = sum(headers.values()) + sum(path.stat().st_size for path in settings)
    weights = sum(path.stat().st_size - headers[path] for path in shards)
    for rank, found in enumerate(everyone):
        assert {path.name: found["opened"][str(path)] for path in settings} == {path.name: 1 for path in settings}
        # a header; the weights of this rank, which may lie in some of the files only; samples on the first rank
        beside = {found["opened"][str(path)] - 1 - (rank == 0) for path in shards}
        assert beside <= {0, 1} and 1 in beside
        # a read through a buffer may take more than asked for, of each file at most one buffer
        assert of_headers <= found["of_headers"] <= of_headers + (len(shards) + len(settings) + 2) * 8192 * 2
        assert found["same"] and found["known"] == everyone[0]["known"]
        assert found["nodes"] == [{"by": rank % 2}, int(rank < 2)]
    assert everyone[0]["of_fingerprint"] > 50_000
    assert all(found["of_fingerprint"] < 5_000 for found in everyone[1:])
    assert weights * 0.8 < sum(found["loaded"] for found in everyone) <= weights


@pytest.mark.slow
@pytest.mark.ranks
def test_the_command_that_resumes_a_run_opens_nothing_twice(repository, tmp_path):
    golden = repository / "tests" / "golden"
    base, run = golden / "base", tmp_path / "checkpoint-v5"
    state = run / "checkpoints" / "step-00000004" / "state.json"
    state.parent.mkdir(parents=True)
    for path in (golden / "checkpoint-v5" / state.parent.relative_to(run)).iterdir():
        shutil.copy(path, state.parent)
    settings = [f"output={tmp_path}", "training.deepspeed=ds_configs/zero3.json", "training.micro_batch=1"]
    command = ["train", str(base / "recipe.yaml"), *settings, "training.stop_at_step=5"]
    run_on_ranks(PROGRAMS / "counted_opens.py", RANKS, str(tmp_path), *command, launcher=True)
    towers = [base / "language_model", base / "vision_tower"]
    weights = [tower / "model.safetensors" for tower in towers]
    for rank in range(RANKS):
        # paths below tests/golden are relative to the root of the repository in the recipe
        names = (tmp_path / f"opens-{rank}").read_text().splitlines()
        opened = Counter((repository / name).resolve() for name in names)
        once = [state.resolve(), *(tower / "config.json" for tower in towers)]
        assert {str(path): opened[path] for path in once} == {str(path): 1 for path in once}
        # a header; the weights of this rank, if some of theirs lie in the file; the samples on the first rank
        beside = {opened[path] - 1 - (rank == 0) for path in weights}
        assert beside <= {0, 1} and 1 in beside
