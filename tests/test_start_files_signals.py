"""The start files and signals: none is lost, ranks are told once, and a cancelled job is left alone."""

import os
import signal
import time

import pytest
from start_files import LONG, REQUEUED, UNTIL_TOLD, Job


@pytest.fixture
def job(tmp_path, repository):
    return Job(tmp_path, repository / "slurm")


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
