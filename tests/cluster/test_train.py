"""`sbatch slurm/train.sbatch` on two nodes, on good days and on bad ones: it trains, evaluates, and loses nothing."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from cluster.jobs import Job
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.cluster

EPOCHS, PER_EPOCH = 12, 6
STEPS = EPOCHS * PER_EPOCH
# short enough for a test; the log says what they were for
WATCH = ["training.silence_timeout=8", "training.standstill_timeout=60"]
BAD_DAY = ["training.checkpoint_steps=4", *WATCH]


def _of_demo(slurm, repository: Path, demo: list[str], shards: Path, folder: Path) -> Job:
    settings = [f"data.test={shards}", f"training.epochs={EPOCHS}", "training.warmup_epochs=1"]
    settings += ["data.record_order=true", "training.keep_last=0", "method.dropout=0.1"]
    return Job(slurm, repository / "slurm" / "train.sbatch", [*demo[1:], *settings], folder, "demo")


@pytest.fixture
def job(slurm, repository, demo, demo_shards, tmp_path) -> Job:
    return _of_demo(slurm, repository, demo, demo_shards, tmp_path)


@pytest.fixture(scope="session")
def calm(slurm, repository, demo_settings, demo_shards, tmp_path_factory) -> Job:
    """The run that nothing happens to."""
    whole = _of_demo(slurm, repository, demo_settings, demo_shards, tmp_path_factory.mktemp("calm")).submit()
    slurm.wait_for(whole.number, "RUNNING", 30)
    whole.shown = slurm.run("squeue", "--noheader", "--format=%i %T %N")
    whole.fields = whole.until_done()
    return whole


def _assert_nothing_lost(job: Job, calm: Job, same_ranks: bool = True) -> None:
    losses, expected = job.losses(), calm.losses()
    assert list(losses) == list(range(1, STEPS + 1))
    if same_ranks:
        assert losses == expected  # to the last bit, dropout included
    order = job.order()
    assert order == calm.order()
    for epoch in range(EPOCHS):
        seen = [n for step in range(epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH) for n in order[step + 1]]
        assert sorted(seen) == list(range(48))
    assert json.loads((job.run / "evaluation.json").read_text())["epoch"] == EPOCHS
    assert "| captions off |" in job.text()


def test_it_trains_over_both_nodes_and_ends_with_an_evaluation(calm):
    assert calm.shown.split() == [calm.number, "RUNNING", "node[1-2]"]
    assert calm.fields["NumNodes"] == "2" and calm.fields["Restarts"] == "0"
    assert calm.text().count("2 ranks on cpu") == 1 and "error" not in calm.text().lower()
    _assert_nothing_lost(calm, calm)
    board = EventAccumulator(str(calm.run)).Reload()
    assert [point.step for point in board.Scalars("loss/train")] == list(range(1, STEPS + 1))
    assert calm.losses()[STEPS] < calm.losses()[1]


def test_preempted_it_saves_comes_back_and_goes_on_to_the_same_losses(slurm, job, calm):
    job.submit(*WATCH).until_step(10)
    slurm.run("scancel", "--signal=USR2", "--batch", job.number)
    assert job.until_done()["Restarts"] == "1"
    began, again = job.starts()
    assert began == 0 and again >= 10
    assert f"step {again}: ended as asked" in job.text() and "requeued (exit code 75)" in job.text()
    _assert_nothing_lost(job, calm)


def test_near_its_time_limit_it_saves_and_comes_back_to_the_same_losses(slurm, repository, demo, demo_shards, tmp_path):
    """Slurm looks at limits twice a minute and may send the signal a minute early: half a minute after the start here,
    or later. So the run is a longer one."""
    settings = [*WATCH, "training.epochs=400", "data.record_order=false"]
    folders = tmp_path / "limited", tmp_path / "whole"
    job, whole = (_of_demo(slurm, repository, demo, demo_shards, folder) for folder in folders)
    job.submit(*settings, options=("--nodes=2", "--time=2", "--signal=B:USR2@30"))
    job.until_said("requeued (exit code 75)")
    again = max(job.losses())
    assert f"step {again}: ended as asked" in job.text()
    slurm.wait_for(job.number, "PENDING", 60)
    slurm.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=10")
    slurm.wait_for(job.number, "RUNNING", 60)
    job.until_step(again + 10)
    assert job.starts() == [0, again]
    slurm.run("scancel", job.number)
    slurm.wait_for(job.number, "CANCELLED", 60)  # and stays so
    assert job.text().count("requeued") == 1
    whole.submit(*settings, f"training.stop_at_step={again + 10}").until_done()
    losses, expected = job.losses(), whole.losses()
    assert list(expected) == list(range(1, again + 11))
    assert {step: losses[step] for step in expected} == expected


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_costs_the_steps_since_the_last_save(job, calm, rank):
    job.submit(*BAD_DAY).until_step(10)
    os.kill(job.rank(rank), signal.SIGKILL)
    assert job.until_done()["Restarts"] == "1"
    assert job.starts()[1] >= 8
    _assert_nothing_lost(job, calm)


def test_a_rank_that_hangs_is_found_and_named(slurm, job, calm):
    job.submit(*BAD_DAY).until_step(10)
    os.kill(job.rank(1), signal.SIGSTOP)
    assert job.until_done()["Restarts"] == "1"
    assert re.search(r"no sign of life for 8 s of rank 1 on node2 \(after step \d+, ", job.text())
    assert re.search(r"rank 0: (forward and backward|update|reading|saving)", job.text())
    _assert_nothing_lost(job, calm)


def test_a_cut_cable_ends_both_sides_and_the_run_goes_on_when_it_is_mended(slurm, job, calm):
    job.submit(*BAD_DAY).until_step(10)
    slurm.cut("node2")
    job.until_said("no sign of life")
    slurm.mend("node2")
    job.until_done()
    _assert_nothing_lost(job, calm)


def test_a_dead_node_is_done_without(slurm, job, calm):
    """Slurm requeues the job itself; its user gives it the one node that is left."""
    job.submit(*BAD_DAY).until_step(10)
    slurm.kill_node("node2")
    slurm.wait_for(job.number, "PENDING", 90)
    slurm.run("scontrol", "update", f"JobId={job.number}", "NumNodes=1", "NumTasks=1", "NumCPUs=1")
    fields = job.until_done()
    assert fields["NumNodes"] == "1" and fields["NodeList"] == "node1"
    assert "2 ranks on cpu" in job.text() and "1 rank on cpu, resuming after step" in job.text()
    _assert_nothing_lost(job, calm, same_ranks=False)
    first = job.starts()[-1]
    losses, expected = job.losses(), calm.losses()
    assert first >= 8 and all(losses[step] == expected[step] for step in range(1, first + 1))
    # one rank adds in another order than two (tests/training/test_elastic_resume.py is exact, in float32)
    assert max(abs(losses[step] - expected[step]) for step in losses) < 0.02


def test_submit_s_own_text_trains_and_evaluate_sbatch_scores_again(slurm, repository, demo, demo_shards, tmp_path):
    submit = ["python", "-m", "dsmemvp", "submit", *demo[1:], f"data.test={demo_shards}", "training.epochs=1"]
    submit += ["training.warmup_epochs=0", "--nodes=2", "--cpu-ranks-per-node=1", "--cpus-per-gpu=1"]
    said = slurm.run(*submit, f"--sbatch=--output={tmp_path / 'log'}")
    (number,) = re.findall(r"\d+", said)
    slurm.wait_for(number, "COMPLETED", 120)
    scores = tmp_path / "runs" / "demo" / "evaluation.json"
    first = scores.read_bytes()
    scores.unlink()
    on_cpus = ["--nodes=2", "--gpus-per-node=0", "--ntasks-per-node=1", "--cpus-per-task=1"]
    again = slurm.sbatch(
        *on_cpus,
        f"--output={tmp_path / 'log'}",
        repository / "slurm" / "evaluate.sbatch",
        *demo[1:],
        f"data.test={demo_shards}",
    )
    slurm.wait_for(again, "COMPLETED", 120)
    assert scores.read_bytes() == first
