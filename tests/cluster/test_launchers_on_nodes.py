"""The same recipe under every launcher, on two nodes that have nothing in common but files and a cable."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

STEPS = 3
JOIN = """
import torch
from dsmemvp.distributed.ranks import join_ranks, leave_ranks
ranks = join_ranks(seconds=60)
value = torch.tensor([10.0**ranks.rank])
torch.distributed.all_reduce(value)
print(value.item())
leave_ranks()
"""
MPIRUN = ["mpirun", "--allow-run-as-root", "--bind-to", "none"]
PASSED_ON = ["-x", "PATH", "-x", "PYTHONPATH", "-x", "DS_ACCELERATOR", "-x", "OMP_NUM_THREADS"]
ROWS = 40


@pytest.mark.parametrize("per_node", [1, 2])
def test_ranks_of_two_nodes_join(slurm, per_node):
    """Also where the environment wrongly says that all ranks are on one node: DeepSpeed would wait for ever to share
    memory with them."""
    command = ["srun", "--nodes=2", f"--ntasks-per-node={per_node}", "env", f"LOCAL_SIZE={2 * per_node}"]
    shown = slurm.run(*command, "python", "-c", JOIN, timeout=60)
    assert shown.split() == [{1: "11.0", 2: "1111.0"}[per_node]] * 2 * per_node


@pytest.mark.parametrize("per_node", [1, 2])
def test_srun_trains_over_both_nodes(slurm, demo, tmp_path, per_node):
    command = ["srun", "--nodes=2", f"--ntasks-per-node={per_node}", "python", "-m", "dsmemvp"]
    _assert_trained(slurm.run(*command, *_few(demo)), 2 * per_node, tmp_path)


def test_the_frozen_weights_are_cut_over_the_nodes(slurm, demo, repository, tiny_models, tmp_path):
    """Half of them lies on the other node, and is fetched in the forward and the backward of every micro-step."""
    cut = json.loads((repository / "ds_configs" / "zero3.json").read_text())
    cut["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # these are so small that they would stay whole
    (tmp_path / "cut.json").write_text(json.dumps(cut))
    command = ["srun", "--nodes=2", "python", "-m", "dsmemvp", *demo, f"training.deepspeed={tmp_path / 'cut.json'}"]
    moved = []
    for stop in (2, 8):  # starting costs the same in both, and the second takes four steps more
        before = slurm.traffic("node1")
        slurm.run(*command, f"training.stop_at_step={stop}")
        moved.append(slurm.traffic("node1").since(before))
    half = (tiny_models / "language_model" / "model.safetensors").stat().st_size / 2
    micro_steps = 8 / (2 * 2)
    for first, second in zip(*moved, strict=True):  # received, sent
        assert 0.9 * 2 * micro_steps * half < (second - first) / 4 < 1.3 * 2 * micro_steps * half


def test_an_error_is_said_once_under_srun(slurm, demo):
    command = ["srun", "--nodes=2", "--kill-on-bad-exit=1", "python", "-m", "dsmemvp", *demo, "data.train=nowhere"]
    with pytest.raises(RuntimeError) as refused:
        slurm.run(*command)
    message = str(refused.value)
    assert message.count("nowhere/dataset.json does not exist") == 1 and "Traceback" not in message


def test_deepspeed_trains_over_the_nodes_of_a_hostfile(slurm, demo, tmp_path):
    (tmp_path / "hostfile").write_text("node1 slots=1\nnode2 slots=1\n")
    command = ["deepspeed", f"--hostfile={tmp_path / 'hostfile'}", "--module", "dsmemvp"]
    _assert_trained(slurm.exec("node1", *command, *_few(demo)), 2, tmp_path)


def test_mpirun_trains_over_the_nodes_of_a_slurm_job(slurm, demo, tmp_path):
    command = ["salloc", "--nodes=2", "--ntasks-per-node=1", *MPIRUN, "python", "-m", "dsmemvp", *_few(demo)]
    _assert_trained(slurm.run(*command), 2, tmp_path)


def test_mpirun_trains_over_named_hosts(slurm, demo, tmp_path):
    command = [*MPIRUN, *PASSED_ON, "--host", "node1,node2", "python", "-m", "dsmemvp", *_few(demo)]
    _assert_trained(slurm.exec("node1", *command), 2, tmp_path)


@pytest.mark.parametrize(
    "start",
    [
        ["srun", "--mpi=pmix", "--nodes=2", "--ntasks-per-node=2"],
        ["salloc", "--nodes=2", "--ntasks-per-node=2", *MPIRUN],
    ],
    ids=lambda start: start[0],
)
def test_data_preparation_runs_on_both_nodes(slurm, tmp_path, start):
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["python", "-m", "data_prep.folder", "--rows", tmp_path / "rows.jsonl", "--images", tmp_path]
    command += ["--per-shard", "5"]
    slurm.run(*command, "--out", tmp_path / "one" / "train")
    slurm.run(*start, *command, "--out", tmp_path / "four" / "train")
    one, four = ({p.name: p.read_bytes() for p in (tmp_path / name / "train").iterdir()} for name in ("one", "four"))
    assert one == four and len(one) > ROWS / 5


def test_prepare_sbatch_makes_shards_on_both_nodes(slurm, repository, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "What is 1 + 1?", "answer": "2"}) + "\n")
    words = ["folder", "--rows", tmp_path / "rows.jsonl", "--images", tmp_path, "--out", tmp_path / "out" / "train"]
    on_both = ["--nodes=2", "--ntasks=2", f"--output={tmp_path / 'log'}"]
    slurm.wait_for(slurm.sbatch(*on_both, repository / "slurm" / "prepare.sbatch", *words), "COMPLETED", 120)
    assert json.loads((tmp_path / "out" / "train" / "dataset.json").read_text())["shards"][0]["samples"] == 1


def _few(demo: list[str]) -> list[str]:
    return [*demo, f"training.stop_at_step={STEPS}"]


def _assert_trained(shown: str, ranks: int, folder: Path) -> None:
    assert shown.count(f"{ranks} ranks on cpu") == 1, shown
    rows = map(json.loads, (folder / "runs" / "demo" / "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
