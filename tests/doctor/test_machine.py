import os

import pytest
from mounting import tmpfs

from dsmemvp.doctor.finding import Here, find_here
from dsmemvp.doctor.machine import cores, devices, gpus, limits, shared_memory

CPU = Here(on_gpus=False)
GIB = 2**30


def level(findings) -> list[str]:
    return [finding.level for finding in findings]


def test_ranks_without_a_gpu_of_their_own_would_fail():
    two = [("H100", 79 * GIB, 80 * GIB)] * 2
    assert level(gpus(two, 2)) == ["ok"] and gpus(two, 2)[0].found == "2 x H100, 80.0 GiB each"
    (found,) = gpus(two, 3)
    assert found.level == "FAIL" and "3 ranks on this node" in found.found and "--gpus-per-node" in found.todo


def test_gpus_in_use_and_gpus_left_idle_are_told():
    four = [("H100", 79 * GIB, 80 * GIB)] * 3 + [("H100", 50 * GIB, 80 * GIB)]
    assert [f.found for f in gpus(four, 4)[1:]] == ["GPU 3: over a tenth is taken"]
    assert [f.found for f in gpus(four[:3], 2)[1:]] == ["1 of them have no rank"]
    assert level(gpus(four[:3], 1)) == ["ok"]  # one process, started by no launcher


def test_gpus_that_torch_cannot_use_would_fail(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    (found,) = devices(CPU)
    assert found.level == "FAIL" and "H100" in found.found and "DS_ACCELERATOR=cpu" in found.todo
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert level(devices(CPU)) == ["ok"]


def test_a_full_shared_memory_would_fail_cpu_ranks_and_not_gpus(tmp_path):
    with tmpfs(tmp_path / "shm", 100) as folder:
        assert level(shared_memory(CPU, 0, folder)) == ["ok"]
        assert level(shared_memory(CPU, 1, folder)) == ["warning"]
        (found,) = shared_memory(Here(local_world=2, world=2), 0, folder)
        assert found.level == "FAIL" and "100 MiB of 100 MiB free" in found.found and "132 MiB" in found.found
        assert level(shared_memory(Here(local_world=2, world=2, on_gpus=True), 0, folder)) == ["ok"]
        (folder / "left").write_bytes(bytes(50 * 2**20))
        assert level(shared_memory(CPU, 0, folder)) == ["FAIL"]


def test_no_shared_memory_at_all_would_fail(tmp_path):
    assert level(shared_memory(CPU, 0, tmp_path / "none")) == ["FAIL"]


@pytest.fixture
def one_core():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def test_cores_that_srun_did_not_pass_on_are_told(one_core):
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_CPUS_PER_TASK": "2"}
    (found,) = cores(Here(local_world=2, world=2), 0, step)
    assert found.level == "warning" and "--cpus-per-task" in found.todo
    assert level(cores(Here(local_world=2, world=2), 0, {**step, "SLURM_CPUS_PER_TASK": "1"})) == ["ok"]


def test_cores_are_counted_per_rank(one_core):
    assert level(cores(CPU, 0, {})) == ["ok"]
    assert level(cores(CPU, 1, {})) == ["warning"]
    assert level(cores(Here(local_world=2, world=2), 0, {})) == ["warning"]  # both on this core


def test_locked_memory_matters_to_infiniband():
    assert level(limits(False, 8 * 2**20, 20_000)) == ["ok"]
    assert level(limits(True, float("inf"), 20_000)) == ["ok"]
    assert level(limits(True, 8 * 2**20, 1024)) == ["warning", "warning"]


def test_who_one_is_among_the_ranks():
    assert find_here({}) == Here(on_gpus=find_here({}).on_gpus)
    given = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "DS_ACCELERATOR": "cpu"}
    found = find_here({**given, "MASTER_ADDR": "n1", "MASTER_PORT": "77"})
    assert found == Here(5, 8, 1, 4, "n1", 77, False) and found.several_nodes
