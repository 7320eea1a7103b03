"""A batch job is told to go, tells its tasks, and comes back: as slurm/train.sbatch relies on it."""

import time

import pytest

pytestmark = pytest.mark.cluster

# `wait` ends when a trapped signal comes, and has to be called again for srun's end; srun passes signals on to its
# tasks. Only then the job requeues itself: Slurm kills at once what still runs of a requeued job.
JOB = """#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --requeue --open-mode=append
echo "start ${SLURM_RESTART_COUNT:-0} of $SLURM_JOB_ID"
if [ "${SLURM_RESTART_COUNT:-0}" = 1 ]; then exit 0; fi
trap 'told=1; kill -USR2 $step' USR2
srun --unbuffered bash -c 'trap "echo saved \\$SLURM_PROCID; exit 3" USR2; echo ready $SLURM_PROCID; sleep 300 & wait' &
step=$!
wait $step
if [ "$told" ]; then wait $step; echo "tasks ended with $?"; scontrol requeue "$SLURM_JOB_ID"; sleep 60; fi
"""


@pytest.fixture
def running(slurm, tmp_path):
    """Starts the job with more options; returns its number and its output once both tasks are ready."""

    def start(*options):
        (tmp_path / "job.sh").write_text(JOB)
        out = tmp_path / "out"
        job = slurm.sbatch(*options, f"--output={out}", tmp_path / "job.sh")
        end = time.monotonic() + 60
        while not out.exists() or out.read_text().count("ready") < 2:
            assert time.monotonic() < end, slurm.logs()
            time.sleep(0.1)
        return job, out

    return start


def _assert_came_back(slurm, job, out) -> None:
    fields = slurm.wait_for(job, "COMPLETED", 120)
    shown = out.read_text().splitlines()
    assert shown[0] == f"start 0 of {job}" and shown[-1] == f"start 1 of {job}"
    assert {"saved 0", "saved 1", "tasks ended with 3"} <= set(shown)
    assert fields["Restarts"] == "1"


def test_a_preempted_job_tells_its_tasks_and_comes_back(slurm, running):
    job, out = running()
    slurm.run("scancel", "--signal=USR2", "--batch", job)
    _assert_came_back(slurm, job, out)


def test_a_job_near_its_time_limit_tells_its_tasks_and_comes_back(slurm, running):
    # slurmctld looks at time limits every 30 s
    _assert_came_back(slurm, *running("--time=1", "--signal=B:USR2@30"))
