"""One cluster for all tests of this folder; each test finds it without jobs, with all its nodes up."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.slurm import Cluster, cluster, missing


@pytest.fixture(scope="session")
def slurm(tmp_path_factory, repository) -> Iterator[Cluster]:
    if reason := missing():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("cluster")) as running:
        running.environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        running.environment["PATH"] = f"{Path(sys.executable).parent}:{running.environment['PATH']}"
        running.environment["PYTHONPATH"] = f"{repository / 'tests'}:{repository}"
        # the deepspeed launcher passes on PYTHONPATH and what stands in this file
        passed_on = ("PATH", "DS_ACCELERATOR", "OMP_NUM_THREADS")
        lines = [f"{name}={running.environment[name]}\n" for name in passed_on]
        (running.folder / ".deepspeed_env").write_text("".join(lines))
        yield running


@pytest.fixture(autouse=True)
def as_found(slurm) -> Iterator[None]:
    yield
    slurm.reset()


@pytest.fixture(scope="session")
def demo_settings(repository, tokenizer_path, demo_shards, tiny_models) -> list[str]:
    """`train recipes/demo.yaml` on the tests' own small data and models: 6 steps per epoch."""
    settings = [f"model.language_model={tiny_models / 'language_model'}", f"model.tokenizer={tokenizer_path}"]
    settings += [f"model.vision_tower={tiny_models / 'vision_tower'}", f"data.train={demo_shards}"]
    settings += ["data.max_length=160", "data.workers=0", "training.global_batch=8", "training.micro_batch=2"]
    settings += ["training.log_every=1", "training.learning_rate=1e-3", "vision.adapter_dim=8"]
    settings += [f"training.deepspeed={repository / 'ds_configs' / 'zero3.json'}"]
    return ["train", str(repository / "recipes" / "demo.yaml"), *settings]


@pytest.fixture
def demo(demo_settings, tmp_path) -> list[str]:
    """The same, with its run below the test's folder."""
    return [*demo_settings, f"output={tmp_path / 'runs'}"]
