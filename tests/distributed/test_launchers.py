"""Who started this process, and where the first one is: by the words of each launcher, and in a real run of mpirun."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launch import mpirun

from dsmemvp.distributed.launchers import Place, find_place, first_node, own_rank, tasks_of_nodes
from dsmemvp.errors import UserError

SRUN = {
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "n[1-3]",
    "SLURM_JOB_ID": "4321",
}


def test_srun_says_who_is_who_and_where_the_first_one_is():
    assert find_place(SRUN) == Place(3, 5, 1, 2, "n1", 12_000 + 4321)
    last = {**SRUN, "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2"}
    assert find_place(last) == Place(4, 5, 0, 1, "n1", 16_321)


def test_an_address_that_the_user_gives_counts():
    place = find_place({**SRUN, "MASTER_ADDR": "10.0.0.9", "MASTER_PORT": "777"})
    assert place is not None and (place.address, place.port) == ("10.0.0.9", 777)


def test_two_jobs_do_not_meet_at_a_port():
    one, two = (find_place({**SRUN, "SLURM_JOB_ID": job}) for job in ("100", "101"))
    assert one is not None and two is not None and one.port != two.port
    assert 1024 < one.port < 32_768


@pytest.mark.parametrize("missing", ["SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"])
def test_what_slurm_does_not_say_is_an_error_and_not_a_guess(missing):
    with pytest.raises(UserError, match=f"srun started 5 processes, but where they are is not known.*{missing}"):
        find_place({key: value for key, value in SRUN.items() if key != missing})


@pytest.mark.parametrize(
    "alone",
    [{}, {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}],
)
def test_a_process_that_is_the_only_one_asks_nobody(alone):
    assert find_place(alone) is None and own_rank(alone) == 0


def test_the_launchers_own_words_tell_who_speaks_first():
    assert own_rank({"RANK": "2", "SLURM_PROCID": "7", "SLURM_STEP_NUM_TASKS": "9"}) == 2
    assert own_rank(SRUN) == 3
    assert own_rank({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}) == 1
    assert own_rank({"PMI_SIZE": "4", "PMI_RANK": "2"}) == 2


@pytest.mark.parametrize(
    ("text", "tasks"), [("4", [4]), ("2(x3)", [2, 2, 2]), ("2(x3),1", [2, 2, 2, 1]), ("1,8(x2)", [1, 8, 8])]
)
def test_slurm_s_short_hand_for_tasks(text, tasks):
    assert tasks_of_nodes(text) == tasks


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("n1", "n1"),
        ("n[1-3]", "n1"),
        ("gpu-[007-009,012]", "gpu-007"),
        ("b[3,5],a1", "b3"),
        ("rack[1-2]n[01-04]", "rack1n01"),
        ("rack[2]n[10,12-14],login", "rack2n10"),
    ],
)
def test_the_first_node_is_the_one_that_slurm_s_own_program_names_first(text, first, tmp_path):
    assert first_node(text) == first
    if shutil.which("scontrol"):
        (tmp_path / "slurm.conf").write_text("ClusterName=c\nSlurmctldHost=a\nNodeName=a\nPartitionName=p Nodes=a\n")
        known = {**os.environ, "SLURM_CONF": str(tmp_path / "slurm.conf")}
        asked = subprocess.run(["scontrol", "show", "hostnames", text], env=known, stdout=subprocess.PIPE, text=True)
        assert asked.stdout.split()[0] == first


def test_the_variables_are_those_that_torch_reads():
    assert Place(3, 5, 1, 2, "n1", 777).variables() == {
        "RANK": "3",
        "WORLD_SIZE": "5",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "n1",
        "MASTER_PORT": "777",
    }


def _mpirun(recipe: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [mpirun(), "--oversubscribe", "--allow-run-as-root", "--bind-to", "none", "-n", "2"]
    command += [sys.executable, "-m", "dsmemvp", "train", str(recipe), *arguments]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    pipe, out = subprocess.PIPE, subprocess.STDOUT
    return subprocess.run(command, env=environment, stdout=pipe, stderr=out, text=True, timeout=240)


@pytest.mark.ranks
def test_mpirun_trains_the_same_recipe_and_an_error_is_said_once(recipe_path):
    done = _mpirun(recipe_path, "training.stop_at_step=2")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("2 ranks on cpu") == 1 and "step 2: saved" in done.stdout
    refused = _mpirun(recipe_path, "data.train=nowhere")
    assert refused.returncode == 1
    assert refused.stdout.count("nowhere/dataset.json does not exist") == 1 and "Traceback" not in refused.stdout
