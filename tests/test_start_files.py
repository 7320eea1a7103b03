"""The start files in slurm/, run by bash with srun, scontrol and squeue in their places: who is started how, what is
requeued, and that no signal is lost. tests/cluster runs them under a real Slurm."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# every srun writes its words to calls, then does what the file named after dsmemvp's command says
SRUN = """#!/bin/bash
printf '%s|' srun "$@" >> calls; echo >> calls
for word; do [ -e "do-$word" ] && source "./do-$word"; done
exit 0
"""
# the real srun passes USR2 on to all ranks and goes on waiting for them
LONG = "touch running; for _ in {1..1000}; do sleep 0.02; done\n"
UNTIL_TOLD = 'trap "echo told >> calls; exit 75" USR2; ' + LONG


@pytest.fixture
def job(tmp_path, repository):
    return Job(tmp_path, repository / "slurm")


class Job:
    """A folder in which start files run as Slurm's batch job 4321."""

    def __init__(self, folder: Path, files: Path):
        self.folder, self.files = folder, files
        self.environment = {"PATH": f"{folder}/bin:/usr/bin:/bin", "SLURM_JOB_ID": "4321", "SLURM_CPUS_PER_TASK": "3"}
        self.environment |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "4"}
        (folder / "bin").mkdir()
        self.program("srun", SRUN)
        self.program("scontrol", '#!/bin/bash\necho "scontrol|$*" >> calls\n')
        self.program("squeue", "#!/bin/bash\necho RUNNING\n")

    def program(self, name: str, text: str) -> None:
        (self.folder / "bin" / name).write_text(text)
        (self.folder / "bin" / name).chmod(0o755)

    def on(self, command: str, text: str) -> None:
        """What srun does when it runs dsmemvp's `command`."""
        (self.folder / f"do-{command}").write_text(text)

    def start(self, name: str = "train.sbatch", *arguments: str) -> subprocess.Popen:
        return self.start_bash(str(self.files / name), *(arguments or ("r.yaml", "seed=1 2")))

    def start_bash(self, *words: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, name: str = "train.sbatch", *arguments: str) -> int:
        return self.end(self.start(name, *arguments))

    def end(self, process: subprocess.Popen) -> int:
        try:
            self.log, _ = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # it and what it has started
            raise
        return process.returncode

    def wait_for(self, file: str) -> None:
        until = time.monotonic() + 20
        while not (self.folder / file).exists():
            assert time.monotonic() < until, f"{file} never came"
            time.sleep(0.01)

    @property
    def calls(self) -> list[str]:
        """dsmemvp's commands that were run, the signals they were told, and requeues."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        words = [line.split("|") for line in lines]
        return [w[w.index("dsmemvp") + 1] if w[0] == "srun" else line for w, line in zip(words, lines, strict=True)]


REQUEUED = "scontrol|requeue 4321"


def test_evaluation_follows_training_with_the_same_words(job):
    assert job.run() == 0
    assert (job.folder / "calls").read_text().splitlines() == [
        "srun|--ntasks=8|--kill-on-bad-exit=1|--cpus-per-task=3|python|-m|dsmemvp|train|r.yaml|seed=1 2|",
        "srun|--ntasks=8|--kill-on-bad-exit=1|--cpus-per-task=3|python|-m|dsmemvp|evaluate|r.yaml|seed=1 2|",
    ]


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


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_to_the_batch_script_reaches_the_ranks_and_is_waited_for(job, command, number):
    job.on(command, UNTIL_TOLD.replace("exit 75", "sleep 0.3; echo saved >> calls; exit 75"))
    process = job.start()
    job.wait_for("running")
    process.send_signal(number)
    assert job.end(process) == 0
    assert job.calls[-3:] == ["told", "saved", REQUEUED]


def test_ranks_are_told_once_however_many_signals_come(job):
    job.on(
        "train",
        'trap "echo told >> calls; touch heard" USR2; touch running; while [ ! -e go ]; do sleep 0.02; done; exit 75',
    )
    process = job.start()
    job.wait_for("running")
    process.send_signal(signal.SIGUSR2)
    job.wait_for("heard")
    for number in (signal.SIGUSR2, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.2)
    (job.folder / "go").touch()
    assert job.end(process) == 0 and job.calls == ["train", "told", REQUEUED]


def test_a_signal_before_srun_is_not_lost(job):
    # `read` is the first thing after the traps; in its place something that lets the signal come
    slow = 'read() { touch early; while [ ! -e go ]; do sleep 0.02; done; builtin read "$@"; }; export -f read'
    process = job.start_bash("-c", f'{slow}; exec bash "$@"', "-", str(job.files / "train.sbatch"), "r.yaml")
    job.wait_for("early")
    process.send_signal(signal.SIGUSR2)
    time.sleep(0.1)
    (job.folder / "go").touch()
    assert job.end(process) == 0 and job.calls == [REQUEUED]


@pytest.mark.parametrize(
    "moment", ["rm -f *", "child=$!", "step evaluate *"]
)  # before, while and after srun is started
def test_a_signal_at_an_awkward_moment_is_not_lost(job, moment):
    # bash runs a DEBUG trap before each command
    debug = f"trap '[[ $BASH_COMMAND != {moment.replace('$', chr(92) + '$').replace(' ', chr(92) + ' ')} ]]"
    debug += " || { trap - DEBUG; sleep 0.3; kill -USR2 $$; }' DEBUG; set -T\n"
    text = (job.files / "train.sbatch").read_text().replace("stop=no child", debug + "stop=no child", 1)
    job.files = job.folder
    (job.folder / "train.sbatch").write_text(text)
    if moment == "child=$!":
        job.on("train", UNTIL_TOLD)
    assert job.run() == 0 and job.calls[-1] == REQUEUED and "evaluate" not in job.calls
    assert "told" in job.calls or moment != "child=$!"


def test_a_cancelled_job_is_left_alone(job):
    """scancel sends TERM to the ranks as well as to the batch script; told again, they would exit without saving."""
    job.program("squeue", "#!/bin/bash\n[[ $* == *4321* ]] && echo COMPLETING\n")
    job.on(
        "train",
        'trap "echo told >> calls" USR2; trap "exit 75" TERM; echo $$ > pid; ' + LONG,
    )
    process = job.start()
    job.wait_for("running")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    os.kill(int((job.folder / "pid").read_text()), signal.SIGTERM)
    assert job.end(process) == 75 and job.calls == ["train"]


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
    steps = ['step train "$@"', 'if [ $code = 0 ]; then step evaluate "$@"; fi']
    assert [line for line in train[5:] if line not in steps] == [
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
