"""A run's files of lines are wound back by their end, whatever they hold, and never held."""

import json
import os
import random
import tracemalloc
from pathlib import Path

import pytest

from dsmemvp.errors import UserError
from dsmemvp.training import record
from dsmemvp.training.monitor import Monitor
from dsmemvp.training.skips import Skips


def line(step: int, text: str = "") -> str:
    return json.dumps({"step": step, "text": text}, ensure_ascii=False) + "\n"


def wound(folder: Path, content: str | bytes, start: int, name: str = "metrics") -> str:
    """What is left of a record when a run resumes after step `start`."""
    path = folder / f"{name}.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    Monitor(folder, active=True, steps=99, start=start).close()
    return path.read_bytes().decode(errors="replace")


def read_by_this_process() -> int:
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


@pytest.mark.parametrize("name", ["metrics", "order", "skipped"])
def test_a_restart_reads_what_it_drops_and_no_more(tmp_path, name):
    path = tmp_path / f"{name}.jsonl"
    steps = 100_000
    with path.open("w") as file:
        file.writelines(line(step, "x" * 200) for step in range(1, steps + 1))
    Monitor(tmp_path / "other", active=True, steps=steps, start=0).close()  # reads what it imports
    size, inode, before = path.stat().st_size, path.stat().st_ino, read_by_this_process()
    tracemalloc.start()
    Monitor(tmp_path, active=True, steps=steps, start=steps - 50).close()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 20e6 and peak < 2e6 and read_by_this_process() - before < 2e6
    with path.open("rb") as file:
        file.seek(-400, os.SEEK_END)
        assert json.loads(file.read().splitlines()[-1])["step"] == steps - 50
    dropped = sum(len(line(step, "x" * 200)) for step in range(steps - 49, steps + 1))
    assert path.stat().st_ino == inode and path.stat().st_size == size - dropped


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 18])
def test_the_place_is_found_wherever_blocks_end(tmp_path, monkeypatch, block):
    monkeypatch.setattr(record, "BLOCK", block)
    chance = random.Random(block)
    for _ in range(20):
        steps = sorted(chance.randrange(1, 30) for _ in range(chance.randrange(12)))
        lines = [line(step, "ü" * chance.choice([0, 1, 5, 200])) for step in steps]
        half = chance.choice(["", '{"step": 31, "te', "{"])
        start = chance.randrange(31)
        expected = "".join(own for step, own in zip(steps, lines, strict=True) if step <= start)
        assert wound(tmp_path, "".join(lines) + half, start) == expected


def test_lines_of_others_stay_before_the_place_and_go_behind_it(tmp_path):
    others = 'hello\n[1, 2]\n\n{"steps": 3}\n{"step": "x"}\n'
    content = others + line(1) + others + line(2) + others + line(3) + others + line(4) + others
    assert wound(tmp_path, content, 2) == others + line(1) + others + line(2) + others
    assert wound(tmp_path, content, 9) == content
    assert wound(tmp_path, others, 2) == others
    assert wound(tmp_path, b"\xff\xfe\0\n" * 3 + line(7).encode(), 2) == (b"\xff\xfe\0\n" * 3).decode(errors="replace")


def test_lines_of_others_are_passed_over_in_counting_and_in_the_report(tmp_path, capsys):
    good = json.dumps({"step": 1, "position": 0, "sample": "x.tar, sample s: is odd"}) + "\n"
    strange = ['{"step": 1, "sample": 7}\n', '{"step": 1, "sam}\n', "nothing\n", "\n", "[" * 5000 + "\n"]
    wound(tmp_path, good + "".join(strange) + good, 1, "skipped")
    monitor = Monitor(tmp_path, active=True, steps=9, start=1)
    Skips(None, monitor, 8, 100).report()
    said = capsys.readouterr().out
    assert "2 times a sample was left out" in said and "sample s: is odd (2 times)" in said
    monitor.close()


def test_a_folder_in_the_place_of_a_record_is_told_in_one_line(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl is not a regular file"):
        Monitor(tmp_path, active=True, steps=9, start=1)


def test_a_report_of_many_samples_holds_few_of_them(tmp_path, capsys):
    path = tmp_path / "skipped.jsonl"
    with path.open("w") as file:
        for number in range(30_000):
            message = f"x.tar, sample s{(number * 7919) % 20_000:05d}: {'is odd ' * 20}"
            file.write(json.dumps({"step": number, "position": 0, "sample": message}) + "\n")
    monitor = Monitor(tmp_path, active=True, steps=99_999, start=99_998)
    tracemalloc.start()
    skips = Skips(None, monitor, 8, 100)
    skips.report()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert skips.total == 30_000 and peak < 2e6
    said = [text.split("  ", 1)[1].strip() for text in capsys.readouterr().out.splitlines()]
    often = [2 if number in {n * 7919 % 20_000 for n in range(20_000, 30_000)} else 1 for number in range(20)]
    assert [("(2 times)" in text) + 1 for text in said[1:-1]] == often and len(said) == 22
    assert said[-1] == f"and {30_000 - sum(often)} more"
    monitor.close()
