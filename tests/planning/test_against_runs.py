"""Predicted bytes against runs of DeepSpeed on two CPU ranks: what is held after three steps, what the third sends."""

import json
from pathlib import Path

import pytest
import yaml
from launch import run_on_ranks, written
from transformers import CLIPVisionConfig, LlamaConfig

from dsmemvp.backbones.configs import Configs
from dsmemvp.config.reading import read_recipe
from dsmemvp.planning.cluster import Cluster
from dsmemvp.planning.gathers import simulate
from dsmemvp.planning.memory import memory
from dsmemvp.planning.sharding import read_sharding
from dsmemvp.planning.trace import trace
from dsmemvp.planning.traffic import traffic

PROGRAM = Path(__file__).parent.parent / "programs" / "planned_run.py"
ZERO3 = Path(__file__).parent.parent.parent / "ds_configs" / "zero3.json"
HALF_A_BILLION = {"vocab_size": 8000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 9}
ODD = {"vocab_size": 2001, "hidden_size": 512, "intermediate_size": 1001, "num_hidden_layers": 4}
# odd sizes, so that partitions have padding
EVEN = {"vocab_size": 2001, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4}
VISION = {"hidden_size": 514, "intermediate_size": 1001, "num_hidden_layers": 4, "num_attention_heads": 2}
VISION |= {"image_size": 32, "patch_size": 8}
TOKENS, RANKS, MICRO_STEPS = 40, 2, 2


def _run(tmp_path: Path, zero: dict, recompute: str, language: dict, *overrides: str):
    """-> (predicted memory, predicted traffic, what the run has found)."""
    settings = json.loads(ZERO3.read_text())
    # small against the model, so that some parameters are kept and others gathered twice
    small = {"stage3_prefetch_bucket_size": 20_000_000, "stage3_max_reuse_distance": 100_000_000}
    small |= {"stage3_max_live_parameters": 150_000_000}
    small = {key: number // (1 if language is HALF_A_BILLION else 40) for key, number in small.items()}
    if language is ODD:
        small["stage3_prefetch_bucket_size"] = "auto"
    small |= {"stage3_param_persistence_threshold": 520_000, "reduce_bucket_size": 2_000_000}
    settings["zero_optimization"] |= small
    settings["zero_optimization"] |= zero
    (tmp_path / "sharding.json").write_text(json.dumps(settings))
    training = {"global_batch": RANKS * MICRO_STEPS, "micro_batch": 1, "recompute": recompute}
    recipe = {"name": "planned", "method": {"slots": 301, "hidden": 33}, "vision": {"adapter_dim": 5}}
    recipe |= {"training": {**training, "deepspeed": str(tmp_path / "sharding.json")}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    given = {"recipe": str(tmp_path / "recipe.yaml"), "overrides": overrides, "tokens": TOKENS}
    given |= {
        "language": {**language, "num_attention_heads": 16},
        "vision": {**VISION, "image_size": 32, "patch_size": 8},
    }
    (tmp_path / "given.json").write_text(json.dumps(given))
    run_on_ranks(PROGRAM, RANKS, str(tmp_path / "given.json"), str(tmp_path / "found.json"))
    memory, traffic, gathers = _planned(tmp_path, recompute, language, *overrides)
    found = written(tmp_path / "found.json")
    if settings["zero_optimization"]["stage"] == 3:
        # the run looks at the start of every module's forward, which a recomputed layer has in the backward too
        assert 0.8 * gathers.live_bytes < found["live"] <= gathers.live_bytes
        assert recompute == "none" or found["live"] == gathers.live_bytes
    return memory, traffic, found


def _planned(tmp_path: Path, recompute: str, language: dict, *overrides: str):
    """What is predicted for the run that `_run` has made there, with other settings."""
    configs = Configs(LlamaConfig(**language, num_attention_heads=16), CLIPVisionConfig(**VISION))
    traced = trace(read_recipe(tmp_path / "recipe.yaml", overrides), configs, TOKENS, recompute)
    sharding, cluster = read_sharding(tmp_path / "sharding.json"), Cluster(RANKS, RANKS, backend="gloo")
    gathers = simulate(traced, sharding, MICRO_STEPS)
    return memory(traced, sharding, cluster, gathers), traffic(traced, sharding, cluster, gathers), gathers


def _held_as_planned(memory, found, bucket: int) -> None:
    # the batch and a few buffers of the modules lie beside what is planned
    assert 0 <= found["storages"] - (memory.weights + memory.trained + bucket) < 100_000


@pytest.mark.slow
@pytest.mark.ranks
def test_zero3_with_half_a_billion_parameters_and_recomputation(tmp_path):
    memory, traffic, found = _run(tmp_path, {}, "full", HALF_A_BILLION)
    assert memory.weights > 500e6
    _held_as_planned(memory, found, bucket=4 * 2_000_000)
    # what the process returned to the system when it let its frozen weights go
    assert found["resident"] == pytest.approx(memory.weights, rel=0.02)
    sent = found["collectives"]
    assert sent["_allgather_base_"] == traffic.size("weights") + traffic.size("persistent")
    assert sent["_reduce_scatter_base_"] == traffic.size("gradients")
    # gathered again in the backward, but not everything
    once = MICRO_STEPS * 2 * 0.5e9
    assert 1.5 * once < traffic.size("weights") < 2 * once
    assert sum(sent.values()) - sent["_allgather_base_"] - sent["_reduce_scatter_base_"] < 100  # the gradient's norm


@pytest.mark.ranks
def test_a_second_partition_in_the_node(tmp_path):
    # few are persistent, which the first micro-step gathers one by one: what is kept whole is decided in the second
    zero = {"zero_hpz_partition_size": RANKS, "stage3_param_persistence_threshold": 300_000}
    memory, traffic, found = _run(tmp_path, zero, "none", ODD)
    _held_as_planned(memory, found, bucket=4 * 2_000_000)
    assert found["collectives"]["_allgather_base_"] == traffic.size("weights") + traffic.size("persistent")
    assert found["collectives"]["_reduce_scatter_base_"] == traffic.size("gradients")


@pytest.mark.ranks
@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_a_quantised_base(tmp_path, form):
    """Codes and scales are gathered as such. Some of both are persistent."""
    language = {**EVEN, "intermediate_size": 1001} if form == "int8" else EVEN
    more = ("training.recompute=full", f"model.quantize={form}")
    memory, traffic, found = _run(tmp_path, {"stage3_param_persistence_threshold": 3_000}, "full", language, *more)
    _held_as_planned(memory, found, bucket=4 * 2_000_000)
    assert found["collectives"]["_allgather_base_"] == traffic.size("weights") + traffic.size("persistent")
    assert found["collectives"]["_reduce_scatter_base_"] == traffic.size("gradients")
    plain, sent, _ = _planned(tmp_path, "full", language, "training.recompute=full")
    linear = 2 * 4 * (4 * 512 * 512 + 3 * 512 * language["intermediate_size"])  # bytes in 16 bits
    less = {"int8": 0.5 - 1 / 64, "nf4": 0.75 - 1 / 64}[form]
    assert plain.weights - memory.weights == pytest.approx(less * linear / RANKS, rel=0.02)
    # gathered at least once in each micro-step, at most twice
    assert MICRO_STEPS * 0.99 < (sent.size("weights") - traffic.size("weights")) / (less * linear) <= 2 * MICRO_STEPS


@pytest.mark.ranks
def test_a_replicated_base(tmp_path):
    memory, traffic, found = _run(tmp_path, {"stage": 1}, "none", ODD)
    _held_as_planned(memory, found, bucket=0)
    assert found["collectives"] == {
        "allreduce_": traffic.size("gradients"),
        "_allgather_base_": traffic.size("updated"),
    }
