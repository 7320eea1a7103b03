"""The start files in slurm/, run by bash with srun, scontrol and squeue in their places: who is started how, what is
requeued, and that no signal is lost. tests/cluster runs them under a real Slurm."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from start_files import REQUEUED, SRUN, Job


@pytest.fixture
def job(tmp_path, repository):
    return Job(tmp_path, repository / "slurm")


def test_evaluation_follows_training_with_the_same_words(job):
    assert job.run() == 0
    assert (job.folder / "calls").read_text().splitlines() == [
        "srun|--ntasks=8|--kill-on-bad-exit=1|--cpus-per-task=3|python|-m|dsmemvp|train|r.yaml|seed=1 2|",
        "srun|--ntasks=8|--kill-on-bad-exit=1|--cpus-per-task=3|python|-m|dsmemvp|evaluate|r.yaml|seed=1 2|",
    ]


@pytest.mark.parametrize("stage", [["--stage", "align"], ["--stage=align"]])
def test_a_stage_alone_is_trained_and_not_evaluated(job, stage):
    assert job.run("train.sbatch", "r.yaml", *stage) == 0 and job.calls == ["train"]
    assert job.run("train.sbatch", "r.yaml", "name=--stage") == 0 and job.calls[-1] == "evaluate"


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("code", [75, 70, 134, 137, 139, 143, 3])
def test_what_another_attempt_may_mend_is_requeued(job, command, code):
    job.on(command, f"exit {code}")
    assert job.run() == 0 and job.calls[-1] == REQUEUED
    assert job.calls[:-1] == (["train"] if command == "train" else ["train", "evaluate"])
    assert f"requeued (exit code {code})" in job.log


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("code", [1, 2, 126, 127])
def test_what_another_attempt_would_not_mend_is_not_requeued(job, command, code):
    job.on(command, f"exit {code}")
    assert job.run() == code and REQUEUED not in job.calls


def test_a_killed_srun_is_requeued(job):
    job.on("train", "kill -KILL $$")
    assert job.run() == 0 and job.calls == ["train", REQUEUED]


def test_an_error_of_the_user_s_counts_more_than_the_ranks_killed_after_it(job):
    job.on("train", 'echo "data.train: ..." > "$DSMEMVP_ERROR_FILE"; exit 143')
    assert job.run() == 1 and job.calls == ["train"]
    assert not list(job.folder.glob(".dsmemvp-error*"))
    job.on("train", "exit 143")
    (job.folder / ".dsmemvp-error-4321").write_text("left behind by a batch script that was killed")
    assert job.run() == 0 and job.calls[-1] == REQUEUED


def test_failures_of_srun_itself_are_told_from_those_of_a_user(job):
    job.on("train", 'exit "$SLURM_EXIT_ERROR"')
    assert job.run() == 0 and job.calls == ["train", REQUEUED]


def test_requeueing_has_an_end(job):
    job.on("train", "exit 70")
    job.environment["SLURM_RESTART_COUNT"] = "99"
    assert job.run() == 0 and job.calls == ["train", REQUEUED]
    job.environment["SLURM_RESTART_COUNT"] = "100"
    assert job.run() == 70 and job.calls.count(REQUEUED) == 1 and "not requeued a 101st time" in job.log


def test_a_requeue_that_slurm_refuses_ends_the_job_with_what_it_was_for(job):
    job.on("train", "exit 75")
    job.program("scontrol", "#!/bin/bash\nexit 1\n")
    assert job.run() == 75


def test_a_recipe_is_trained_and_scored_and_a_mistake_in_it_is_not_tried_again(job, repository, recipe_path):
    """The commands themselves, in one process; srun starts what follows its own options."""
    job.program("srun", '#!/bin/bash\nwhile [[ $1 == -* ]]; do shift; done\nexec "$@"\n')
    job.environment |= {"PYTHONPATH": str(repository), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    job.environment["PATH"] = f"{job.folder}/bin:{Path(sys.executable).parent}:/usr/bin:/bin"
    assert job.run("train.sbatch", str(recipe_path), "training.epochs=1") == 0, job.log
    assert "saved" in job.log and "| captions on" in job.log
    assert job.run("train.sbatch", str(recipe_path), "training.epoch=1") == 1
    assert "did you mean 'training.epochs'?" in job.log and not (job.folder / "calls").exists()


FILES = {
    "train.sbatch": ["r.yaml"],
    "search.sbatch": ["r.yaml"],
    "evaluate.sbatch": ["r.yaml", "--blind"],
    "compare.sbatch": ["s.yaml", "--out", "o"],
    "prepare.sbatch": ["scienceqa", "--out", "a b"],
    "tensorboard.sbatch": [],
}


@pytest.mark.parametrize("name", FILES)
def test_the_command_before_python_is_the_user_s(job, name):
    job.environment["DSMEMVP_RUN"] = "apptainer exec --nv image.sif"
    job.program("srun", SRUN.replace("for word", 'echo "${PATH%%:*}" > path; for word'))
    assert job.run(name, *FILES[name]) == 0
    assert all(
        "|apptainer|exec|--nv|image.sif|python|-m|" in x for x in (job.folder / "calls").read_text().splitlines()
    )
    assert (job.folder / "path").read_text() == f"{job.folder}/bin\n"
    del job.environment["DSMEMVP_RUN"]
    assert job.run(name, *FILES[name]) == 0
    assert (job.folder / "calls").read_text().splitlines()[-1].count("|python|-m|") == 1
    assert (job.folder / "path").read_text() == f"{job.folder}/.venv/bin\n"


@pytest.mark.parametrize("name", FILES)
def test_ranks_get_their_cores(job, name):
    job.run(name, *FILES[name])
    assert "|--cpus-per-task=3|" in (job.folder / "calls").read_text()
    (job.folder / "calls").unlink()
    del job.environment["SLURM_CPUS_PER_TASK"]
    job.run(name, *FILES[name])
    assert "|--cpus-per-task=1|" in (job.folder / "calls").read_text()


def test_preparation_runs_under_mpi(job):
    assert job.run("prepare.sbatch", "vqav2", "--out", "data/a b") == 0
    (line,) = (job.folder / "calls").read_text().splitlines()
    assert line.startswith("srun|--mpi=pmix|") and line.endswith("|python|-m|data_prep.vqav2|--out|data/a b|")
    job.program("srun", "#!/bin/sh\nexit 9\n")
    assert job.run("prepare.sbatch", "vqav2") == 9


def test_evaluation_alone_passes_its_options_on(job):
    assert job.run("evaluate.sbatch", "r.yaml", "--blind", "seed=1") == 0
    assert (job.folder / "calls").read_text().endswith("|python|-m|dsmemvp|evaluate|r.yaml|--blind|seed=1|\n")


def test_a_search_is_watched_and_requeued_as_training_is(job, repository):
    train, search = ((repository / "slurm" / f"{name}.sbatch").read_text().splitlines() for name in ("train", "search"))
    assert train[4].endswith("=dsmemvp") and search[4].endswith("=dsmemvp-search")
    assert [line for line in train[5:] if "step train" not in line and "step evaluate" not in line] == [
        line for line in search[5:] if "step search" not in line
    ]
    assert job.run("search.sbatch", "r.yaml", "seed=1") == 0
    assert (job.folder / "calls").read_text().endswith("|python|-m|dsmemvp|search|r.yaml|seed=1|\n")


def test_tensorboard_says_how_to_reach_it(job):
    job.environment |= {"USER": "ada", "SLURM_SUBMIT_HOST": "login7"}
    assert job.run("tensorboard.sbatch", "elsewhere") == 0
    host = subprocess.run(["hostname"], capture_output=True, text=True).stdout.strip()
    assert f"ssh -N -L 6006:{host}:16321 ada@login7" in job.log
    assert "--logdir|elsewhere|--bind_all|--port|16321|" in (job.folder / "calls").read_text()


def test_the_files_are_short_and_clean(repository):
    files = sorted((repository / "slurm").glob("*.sbatch"))
    assert [file.name for file in files] == sorted(FILES)
    for file in files:
        assert len(file.read_text().splitlines()) <= 50 and max(map(len, file.read_text().splitlines())) <= 120
        assert subprocess.run(["bash", "-n", str(file)]).returncode == 0
        if shutil.which("shellcheck"):
            found = subprocess.run(["shellcheck", str(file)], capture_output=True, text=True)
            assert found.returncode == 0, found.stdout


def test_training_asks_slurm_for_what_preemption_needs(repository):
    lines = (repository / "slurm" / "train.sbatch").read_text().splitlines()
    assert {"#SBATCH --requeue", "#SBATCH --open-mode=append", "#SBATCH --signal=B:USR2@300"} <= set(lines)
