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
        yield running


@pytest.fixture(autouse=True)
def as_found(slurm) -> Iterator[None]:
    yield
    slurm.reset()
