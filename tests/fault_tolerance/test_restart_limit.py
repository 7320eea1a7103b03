"""A requeued job that gets no further is not requeued for ever."""

import json
import os

import pytest

from dsmemvp.errors import UserError
from dsmemvp.fault_tolerance.restart_limit import FILE, count_start


def _job(number=7, restart=0):
    return {"SLURM_JOB_ID": str(number), "SLURM_RESTART_COUNT": str(restart)}


def _rows(run):
    return [json.loads(line) for line in (run / FILE).read_text().splitlines()]


def test_the_start_after_so_many_fruitless_ones_is_refused(tmp_path):
    for restart in range(3):
        count_start(tmp_path, 40, _job(restart=restart), 3)
    with pytest.raises(UserError, match=r"^job 7 was started 3 times from step 40 and got no further"):
        count_start(tmp_path, 40, _job(restart=3), 3)
    assert [(row["from"], row["job"], row["restart"]) for row in _rows(tmp_path)] == [(40, "7", i) for i in range(3)]


def test_a_pipe_in_the_place_of_the_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(UserError, match=r"starts\.jsonl is not a regular file"):
        count_start(tmp_path, 0, {}, 3)


def test_one_step_further_begins_a_new_count(tmp_path):
    for restart in range(9):
        count_start(tmp_path, 40 + restart // 2, _job(restart=restart), 2)


def test_a_later_start_from_an_earlier_step_counts(tmp_path):
    """Where the newest checkpoints were damaged the run is no further than it was."""
    for restart, step in enumerate((40, 38)):
        count_start(tmp_path, step, _job(restart=restart), 2)
    with pytest.raises(UserError, match="2 times from step 38"):
        count_start(tmp_path, 38, _job(restart=2), 2)


def test_submitted_anew_or_started_by_hand_it_may_try_again(tmp_path):
    for restart in range(2):
        count_start(tmp_path, 5, _job(restart=restart), 2)
    count_start(tmp_path, 5, {}, 2)
    count_start(tmp_path, 5, _job(8), 2)
    count_start(tmp_path, 5, _job(8, 1), 2)
    with pytest.raises(UserError, match="job 8"):
        count_start(tmp_path, 5, _job(8, 2), 2)


def test_the_same_job_that_was_not_requeued_is_not_refused(tmp_path):
    for _ in range(5):  # several runs of the command in one interactive allocation
        count_start(tmp_path, 5, _job(restart=0), 2)


def test_half_a_line_of_a_start_that_was_cut_off_is_passed_over(tmp_path):
    count_start(tmp_path, 5, _job(), 2)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"from": 5, "jo')
    count_start(tmp_path, 5, _job(restart=1), 2)
    with pytest.raises(UserError, match="2 times from step 5"):
        count_start(tmp_path, 5, _job(restart=2), 2)


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"null",
        b"[1]",
        b'{"from": "5", "job": "7"}',
        b'{"job": 7, "from": 5}',
        b"not JSON }",
        b"\xff}",
        b"[" * 9999,
    ],
    ids=["empty", "null", "list", "text", "number", "words", "bytes", "deep"],
)
def test_lines_that_somebody_else_has_written_are_passed_over(tmp_path, line):
    count_start(tmp_path, 5, _job(), 2)
    with (tmp_path / FILE).open("ab") as file:
        file.write(line + b"\n")
    count_start(tmp_path, 5, _job(restart=1), 2)
    with pytest.raises(UserError, match="2 times from step 5"):
        count_start(tmp_path, 5, _job(restart=2), 2)
    assert line + b"\n" in (tmp_path / FILE).read_bytes()


def test_of_a_file_of_any_size_the_end_is_read(tmp_path):
    with (tmp_path / FILE).open("wb") as file:
        file.truncate(1 << 34)  # one line of zeros, which takes no room
    for restart in range(2):
        count_start(tmp_path, 5, _job(restart=restart), 2)
    with pytest.raises(UserError, match="2 times from step 5"):
        count_start(tmp_path, 5, _job(restart=2), 2)
