"""Preparing on several MPI ranks: the same bytes as in one process, also after a kill, and errors that end all."""

import io
import os
import sys
import time

import pytest
from PIL import Image
from prepared import contents, here, kill, run, samples, start
from stand_ins import write_scienceqa

from data_prep import prepare, ranks, scienceqa
from dsmemvp.errors import UserError

PROBLEMS, PER_SHARD = 300, 12
SHARDS = PROBLEMS // PER_SHARD
OPTIONS = ("--split", "train", "--per-shard", PER_SHARD, "--resize", 32)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_scienceqa(tmp_path_factory.mktemp("raw"), PROBLEMS)


@pytest.fixture(scope="module")
def alone(raw, tmp_path_factory):
    """What one process writes without an interruption."""
    out = tmp_path_factory.mktemp("expected") / "train"
    code, told, err = run("scienceqa", "--data", raw, "--out", out, *OPTIONS)
    assert (code, err) == (0, "") and told == f"{PROBLEMS} samples in {SHARDS} shards -> {out}\n"
    return out


@pytest.fixture(scope="module")
def expected(alone):
    written = contents(alone)
    assert len(written) == 2 * SHARDS + 1
    return written


NOTING = """
import os, sys
from data_prep import prepare, scienceqa

def write_one(job, number, pictures, write_one=prepare._write_one):
    with open(f"{job.given.out}-{os.environ['OMPI_COMM_WORLD_RANK']}", "a") as file:
        print(number, file=file)
    write_one(job, number, pictures)

prepare._write_one = write_one
sys.exit(scienceqa.main())
"""


@pytest.mark.parametrize("number", [2, 3])
def test_any_number_of_ranks_writes_the_same_bytes_each_its_part(raw, expected, tmp_path, number):
    out = tmp_path / "train"
    code, told, err = run(NOTING, "--data", raw, "--out", out, *OPTIONS, ranks=number)
    assert (code, err) == (0, "") and told.count("\n") == 1
    assert contents(out) == expected
    parts = [(tmp_path / f"train-{rank}").read_text().split() for rank in range(number)]
    assert sorted(int(n) for part in parts for n in part) == list(range(SHARDS))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("before", "after"), [(2, 3), (1, 2)])
def test_killed_in_the_middle_it_goes_on_with_another_number_of_ranks(raw, expected, tmp_path, before, after):
    out = tmp_path / "train"
    process = start("scienceqa", "--data", raw, "--out", out, *OPTIONS, ranks=before)
    deadline = time.monotonic() + 60
    while (finished := len(list(out.glob("preparing/done-*.json")))) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    kill(process)
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("preparing/done-*.json")}
    assert finished >= 3 and len(kept) < SHARDS and not (out / "dataset.json").exists()
    kept = {number: (out / f"{number[5:11]}.tar").stat().st_mtime_ns for number in kept}
    code, told, _ = run("scienceqa", "--data", raw, "--out", out, *OPTIONS, ranks=after)
    assert code == 0 and f"{len(kept)} of {SHARDS} shards finished" in told
    assert contents(out) == expected
    assert kept == {number: (out / f"{number[5:11]}.tar").stat().st_mtime_ns for number in kept}  # not written again


def test_an_error_on_one_rank_ends_all_in_one_line_and_keeps_what_is_finished(raw, expected, tmp_path):
    out, image = tmp_path / "train", raw / "images" / "train" / "158" / "image.png"
    content = image.read_bytes()
    image.write_bytes(b"no image")
    try:
        code, _, err = run("scienceqa", "--data", raw, "--out", out, *OPTIONS, ranks=2)
    finally:
        image.write_bytes(content)
    assert code == 1 and "Traceback" not in err
    (line,) = [line for line in err.splitlines() if "data_prep" in line]
    assert line.startswith(
        f"data_prep.scienceqa: error: {raw / 'problems.json'}, problem 158: {image}: image cannot be"
    )
    done = {path.name for path in out.glob("preparing/done-*.json")}
    assert done and "done-000013.json" not in done
    assert not (out / "dataset.json").exists()
    assert run("scienceqa", "--data", raw, "--out", out, *OPTIONS)[0] == 0
    assert contents(out) == expected


def test_an_error_in_the_plan_is_told_once_and_ends_all_ranks(tmp_path):
    code, out, err = run("scienceqa", "--data", tmp_path, "--out", tmp_path / "train", ranks=2)
    assert (code, out) == (1, "") and "Traceback" not in err
    assert err.count(f"data_prep.scienceqa: error: {tmp_path / 'problems.json'} does not exist\n") == 1


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_processes_that_mpi_does_not_join_are_refused(raw, tmp_path, rank, lines):
    """As `srun -n 2` without --mpi=pmix starts them; one of them tells."""
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": rank}
    code, _, err = run("scienceqa", "--data", raw, "--out", tmp_path / "train", **slurm)
    assert code == 1 and err.count("\n") == lines
    assert ("srun started 2 processes, but MPI sees 1; with Slurm use `srun --mpi=pmix`" in err) == bool(lines)
    assert not (tmp_path / "train").exists()


@pytest.mark.parametrize("started", [{}, {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, {"OMPI_COMM_WORLD_SIZE": "1"}])
def test_one_process_does_not_ask_mpi(monkeypatch, started):
    """Not in a batch script of Slurm either."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "PMI_"))]:
        monkeypatch.delenv(name)
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert ranks.find_ranks() == ranks.Ranks()


def test_a_missing_mpi_library_is_told(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(UserError, match="started 2 processes, but MPI cannot be loaded"):
        ranks.find_ranks()


def test_images_of_every_format_arrive_in_the_size_that_was_asked_for(alone):
    arrived = samples(alone)
    images = [Image.open(io.BytesIO(s.image)) for s in arrived if s.image]
    assert len(arrived) == PROBLEMS and len(images) == PROBLEMS * 2 / 3
    assert {(i.size, i.mode, i.format) for i in images} == {((32, 32), "RGB", "PNG")}


def test_an_error_that_nobody_expected_ends_all_ranks_too(raw, tmp_path):
    """The others wait for the rank that fails: without an end they would wait for ever."""
    program = """
import os
from data_prep import prepare, scienceqa
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    prepare._write_one = None
scienceqa.main()
"""
    code, _, err = run(program, "--data", raw, "--out", tmp_path / "train", *OPTIONS, ranks=2)
    assert code == 1 and "TypeError" in err


def test_a_rank_stops_where_another_has_failed(raw, tmp_path, monkeypatch, capsys):
    def write_one(job, number, pictures):
        (job.work / "stopped").touch()
        written.append(number)

    written: list[int] = []
    monkeypatch.setattr(prepare, "_write_one", write_one)
    code, *_ = here(scienceqa, monkeypatch, capsys, "--data", raw, "--out", tmp_path / "train", *OPTIONS)
    assert code == 1 and written == [0]
