"""A preparation that was interrupted, changed or short of room: it resumes, or begins anew, and is never half done."""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from making import picture
from prepared import contents, here, run, samples

from data_prep import folder, plan
from dsmemvp.data.manifest import read_manifest

ROWS, PER_SHARD = 7, 3


@pytest.fixture
def raw(tmp_path) -> Path:
    return write_raw(tmp_path / "raw", ROWS)


def write_raw(raw: Path, number: int, size: int = 0) -> Path:
    """JSON lines, every row with an image; with `size`, of that many bytes."""
    (raw / "images").mkdir(parents=True)
    rows = []
    for i in range(number):
        content = random.Random(i).randbytes(size) if size else picture(colour=(i, 0, 0))
        (raw / "images" / f"{i}.png").write_bytes(content)
        rows.append({"id": f"r{i}", "question": "Q?", "answer": "a", "image": f"{i}.png"})
    (raw / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return raw


def options(raw: Path, out: Path, per_shard: int = PER_SHARD) -> list:
    return ["--rows", raw / "rows.jsonl", "--images", raw / "images", "--out", out, "--per-shard", per_shard]


@pytest.fixture
def prepare(monkeypatch, capsys):
    return lambda *given: here(folder, monkeypatch, capsys, *given)


def test_killed_before_any_file_operation_it_never_leaves_half_a_data_set_and_goes_on(raw, tmp_path, prepare):
    """Over an older data set with more shards, of which nothing may stay behind."""
    old, expected, out = tmp_path / "old" / "train", tmp_path / "expected" / "train", tmp_path / "out" / "train"
    assert prepare(*options(raw, old, 1))[0] == prepare(*options(raw, expected))[0] == 0
    older, newer = read_manifest(old).shards, read_manifest(expected).shards
    assert len(older) > len(newer) == 3
    for operation in itertools.count():
        shutil.copytree(old, out)
        killed = _killed_at(operation, out, options(raw, out))
        if (out / "dataset.json").exists():
            assert read_manifest(out).shards in (older, newer) and len(samples(out)) == ROWS
        code, _, err = prepare(*options(raw, out))
        assert (code, err) == (0, "") and contents(out) == contents(expected), operation
        shutil.rmtree(out)
        if not killed:
            break
    assert operation > 50


def _killed_at(operation: int, out: Path, given: list) -> bool:
    """Prepares in a process of its own that is gone, with all that it has not yet handed to the system, before it
    opens, renames or removes a file in `out` for the `operation`-th time. False where it came to its end before."""
    if (child := os.fork()) == 0:
        numbers = itertools.count()

        def hook(event: str, arguments: tuple) -> None:
            named = event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
            inside = named and (str(arguments[0]).startswith(str(out)) or event.startswith("os."))
            if inside and next(numbers) == operation:
                os._exit(9)

        sys.addaudithook(hook)
        sys.argv = ["folder", *map(str, given)]
        os._exit(folder.main())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


CHANGES = [
    (["--per-shard", "2"], "per_shard"),
    (["--resize", "8"], "resize"),
    (["--split", "other"], "split"),
]


@pytest.mark.parametrize(("changed", "name"), CHANGES)
def test_changed_options_begin_anew(raw, tmp_path, prepare, changed, name):
    _interrupt(raw, tmp_path / "out", prepare)
    code, out, _ = prepare(*options(raw, tmp_path / "out"), *changed)
    assert code == 0 and f"beginning anew in {tmp_path / 'out'}: changed since the last attempt: {name}\n" in out
    prepare(*options(raw, tmp_path / "expected"), "--split", "out", *changed)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_changed_input_file_begins_anew(raw, tmp_path, prepare):
    _interrupt(raw, tmp_path / "out", prepare)
    rows = raw / "rows.jsonl"
    rows.write_text(rows.read_text().replace("Q?", "Why?"))
    code, out, _ = prepare(*options(raw, tmp_path / "out"))
    assert code == 0 and f"changed since the last attempt: {rows}\n" in out
    assert {s.question for s in samples(tmp_path / "out")} == {"Why?"}


def test_bad_rows_may_be_left_out_of_the_rest_without_beginning_anew_and_not_the_other_way(raw, tmp_path, prepare):
    out = tmp_path / "out"
    lost = _interrupt(raw, out, prepare)
    first = (out / "000000.tar").stat().st_mtime_ns
    lost.unlink()
    code, told, _ = prepare(*options(raw, out), "--on-bad-row", "skip")
    assert code == 0 and "1 of 3 shards finished" in told and "6 samples in 3 shards" in told
    assert (out / "000000.tar").stat().st_mtime_ns == first

    (raw / "images" / "6.png").write_bytes(b"")
    code, told, _ = prepare(*options(raw, out), "--on-bad-row", "skip", "--resize", 8, "--per-shard", 1)
    assert code == 0 and told.count("left out: ") == 2 and "5 samples in 5 shards" in told
    assert not (out / "000006.tar").exists()


def _interrupt(raw: Path, out: Path, prepare) -> Path:
    """One shard is finished, the next one has a row whose image is not there; then it is. Returns the image."""
    lost = raw / "images" / "4.png"
    content = lost.read_bytes()
    lost.unlink()
    code, _, err = prepare(*options(raw, out))
    assert (
        code == 1 and f"line 5: image {lost} does not exist (finished shards are kept, the same command resumes)" in err
    )
    assert [path.name for path in out.glob("preparing/done-*")] == ["done-000000.json"]
    lost.write_bytes(content)
    return lost


def test_what_was_left_out_is_looked_at_again_where_that_is_no_longer_allowed(raw, tmp_path, prepare):
    rows, lost, out = raw / "rows.jsonl", raw / "images" / "0.png", tmp_path / "out"
    lost.unlink()
    (raw / "images" / "5.png").unlink()
    (raw / "images" / "5.png").mkdir()  # an image that is a folder is left out; one that cannot be read ends the run
    with rows.open("a") as file:
        file.write("{\n")
    assert prepare(*options(raw, out), "--on-bad-row", "skip")[0] == 0
    interrupted = tmp_path / "again"
    prepare(*options(raw, interrupted))
    assert not (interrupted / "preparing" / "plan.json").exists()  # the plan itself fails on the last row
    assert _killed_at(45, interrupted, [*options(raw, interrupted), "--on-bad-row", "skip"])
    assert list(interrupted.glob("preparing/done-*"))
    code, _, err = prepare(*options(raw, interrupted))
    assert code == 1 and f"line 1: image {lost} does not exist" in err


def test_a_failing_plan_leaves_a_complete_data_set_alone(raw, tmp_path, prepare):
    out = tmp_path / "out"
    prepare(*options(raw, out))
    before = contents(out)
    rows = raw / "rows.jsonl"
    rows.write_text(rows.read_text() + "{\n")
    code, _, err = prepare(*options(raw, out))
    assert code == 1 and "rows.jsonl, line 8: is not JSON" in err
    assert {name: before[name] for name in before} == {name: contents(out)[name] for name in before}


def test_what_is_left_of_a_plan_that_was_being_removed_is_no_plan(raw, tmp_path, prepare, monkeypatch):
    """Its files go in any order, and the plan's own must be the first."""
    _interrupt(raw, tmp_path / "out", prepare)
    work = tmp_path / "out" / "preparing"
    assert plan.read_plan(work) is not None
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    plan.remove_plan(work)
    assert plan.read_plan(work) is None


@pytest.mark.parametrize("change", [Path.unlink, lambda path: os.truncate(path, 1024)])
def test_a_finished_shard_whose_file_is_gone_or_shorter_is_written_again(raw, tmp_path, prepare, change):
    _interrupt(raw, tmp_path / "out", prepare)
    change(tmp_path / "out" / "000000.tar")
    code, out, _ = prepare(*options(raw, tmp_path / "out"))
    assert code == 0 and "0 of 3 shards finished" in out and len(samples(tmp_path / "out")) == ROWS


def test_shards_of_others_are_not_touched(raw, tmp_path, prepare):
    (tmp_path / "out").mkdir()
    for name in ("pairs-000009.tar", "00001.tar", "notes.txt"):
        (tmp_path / "out" / name).write_bytes(b"mine")
    assert prepare(*options(raw, tmp_path / "out"))[0] == 0
    assert {n for n, content in contents(tmp_path / "out").items() if content == b"mine"} == {
        "pairs-000009.tar",
        "00001.tar",
        "notes.txt",
    }


@pytest.fixture
def small_disk(tmp_path):
    """2 MiB in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)], check=False).returncode
    ):
        pytest.skip("a small disk can only be mounted by root; the next test covers the same lines with a limit")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_on_a_full_disk_it_ends_in_one_line_and_goes_on_when_there_is_room(tmp_path, small_disk):
    raw, out = write_raw(tmp_path / "raw", 40, size=20_000), small_disk / "train"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1_600_000))
    code, told, err = run("folder", *options(raw, out, 8))
    assert (code, told) == (1, "")
    why = "No space left on device (finished shards are kept, the same command resumes)"
    assert err == f"data_prep.folder: error: {out / '000002.tar'}: {why}\n"
    assert not list(out.glob("*.partial")) and len(list(out.glob("preparing/done-*"))) == 2
    filler.unlink()
    code, told, err = run("folder", *options(raw, out, 8))
    assert (code, err) == (0, "") and "2 of 5 shards finished" in told
    run("folder", *options(raw, tmp_path / "train", 8))
    assert contents(out) == contents(tmp_path / "train")


def test_a_file_that_grows_too_large_ends_it_in_one_line(tmp_path):
    raw, out = write_raw(tmp_path / "raw", 40, size=20_000), tmp_path / "out"
    code, _, err = run("folder", *options(raw, out, 8), largest_file=100_000)
    assert code == 1 and err.startswith(f"data_prep.folder: error: {out / '000000.tar'}: File too large (finished")
    assert err.count("\n") == 1
    code, _, err = run("folder", *options(raw, out, 40), largest_file=1000)
    assert code == 1 and err == f"data_prep.folder: error: {out / 'preparing'}: File too large\n"
