"""Samples that were left out: counted over steps and ranks, and stopped where there are too many in a row."""

import json
from collections import Counter

import pytest

from dsmemvp.data.batch import Skip
from dsmemvp.data.packing import make_batch
from dsmemvp.errors import UserError
from dsmemvp.training.monitor import Monitor
from dsmemvp.training.skips import Skips


class Ranks:
    """This rank and others, whose texts are given beforehand."""

    def __init__(self):
        self.others: list[str] = []

    def gather(self, texts: list[str]) -> list[str]:
        return self.others + texts


class Run:
    """A first rank with its monitor; `step` notes skips at positions of the global batch, some by other ranks."""

    def __init__(self, folder, start=0, most=100, active=True):
        self.ranks, self.now = Ranks(), start
        self.monitor = Monitor(folder, active, steps=100, start=start)
        self.skips = Skips(self.ranks, self.monitor, 8, most)

    def step(self, own=(), others=()):
        self.now += 1
        self.ranks.others = [json.dumps([position, message(position)]) for position in others]
        parts = [make_batch([], 2), make_batch([], 2)]
        for part, positions in zip(parts, (own[:1], own[1:]), strict=True):
            skipped = tuple(Skip(position, message(position)) for position in positions)
            object.__setattr__(part, "skipped", skipped)
        if own or others:
            self.skips.note(self.now, parts)
        else:
            self.skips.none()

    def rows(self):
        return list(self.monitor.written("skipped"))


def message(position: int) -> str:
    return f"x.tar, sample s{position}: is odd"


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path, most=10)
    yield run
    run.monitor.close()


def test_every_skip_is_counted_and_written_in_the_order_of_the_samples(run):
    run.step(own=(6, 1), others=(3,))
    run.step()
    run.step(others=(0,))
    wanted = [(1, 1), (1, 3), (1, 6), (3, 0)]
    assert run.rows() == [{"step": s, "position": p, "sample": message(p)} for s, p in wanted]
    assert run.skips.total == 4


def test_a_streak_goes_on_over_steps_and_over_ranks_and_ends_the_run_at_its_limit(run):
    run.step(own=(5,), others=(6, 7))
    run.step(own=(0, 2, 4), others=(1, 3))
    with pytest.raises(UserError) as caught:
        run.step(own=(0, 1, 2, 3, 4, 5, 6, 7))  # 5 in step 2 was good: 0 to 7 are eight in a row, not ten
        run.step(own=(0,), others=(1, 2))
    assert run.now == 4
    text = "step 4: 10 samples one after another could not be used, as many as data.most_bad_in_a_row allows"
    assert str(caught.value) == f"{text}; the last: {message(1)}"
    assert [row["step"] for row in run.rows()].count(4) == 2


def test_the_limit_ends_the_run_on_every_rank_alike(tmp_path):
    others = Run(tmp_path / "other", most=3, active=False)
    first = Run(tmp_path / "first", most=3)
    for rank, own, rest in ((first, (0, 2), (1,)), (others, (1,), (0, 2))):
        with pytest.raises(UserError, match="step 1: 3 samples one after another"):
            rank.step(own, rest)
    assert not (tmp_path / "other").exists()
    first.monitor.close()


def test_one_good_sample_begins_a_new_count(run):
    for _ in range(20):
        run.step(own=(0, 1, 2, 3), others=(5, 6, 7))  # seven of eight, for ever
    assert run.skips.total == 140


def test_a_step_without_skips_begins_a_new_count(run):
    for _ in range(5):
        run.step(own=tuple(range(8)))
        run.step()
    with pytest.raises(UserError, match="10 samples one after another"):
        run.step(own=tuple(range(8)))
        run.step(own=(0, 1))


def test_a_limit_of_one_ends_the_run_at_the_first(tmp_path):
    run = Run(tmp_path, most=1)
    with pytest.raises(UserError, match=r"1 sample one after another.*s3: is odd"):
        run.step(own=(3,))
    run.monitor.close()


def test_the_first_skip_is_said_at_once_and_the_second_is_not(run, capsys):
    run.step(own=(3,))
    assert f"step 1: left out, the 1. so far: {message(3)}" in capsys.readouterr().out
    run.step(own=(4,))
    assert capsys.readouterr().out == ""


def test_totals_go_on_where_a_run_goes_on_and_forget_what_will_come_again(tmp_path):
    run = Run(tmp_path)
    for position in (1, 2, 3):
        run.step(own=(position,))
    run.monitor.close()
    again = Run(tmp_path, start=2)
    assert again.skips.total == 2 and [row["position"] for row in again.rows()] == [1, 2]
    again.step(own=(3,))
    assert again.skips.total == 3
    again.monitor.close()
    straight = Run(tmp_path / "straight")
    for position in (1, 2, 3):
        straight.step(own=(position,))
    straight.monitor.close()
    assert (tmp_path / "skipped.jsonl").read_bytes() == (tmp_path / "straight" / "skipped.jsonl").read_bytes()


def test_the_report_names_every_sample_once_with_how_often(run, capsys):
    for _ in range(3):
        run.step(own=(2,), others=(5,))
        run.step(own=(2,))
    capsys.readouterr()
    run.skips.report()
    said = [line.split("  ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert said == [
        "9 times a sample was left out (all in skipped.jsonl):",
        f"  {message(2)} (6 times)",
        f"  {message(5)} (3 times)",
    ]


def test_a_long_report_is_cut_and_a_run_without_skips_has_none(tmp_path, capsys):
    run = Run(tmp_path)
    run.skips.report()
    assert capsys.readouterr().out == ""
    for step in range(1, 31):
        run.monitor.write("skipped", {"step": step, "position": 0, "sample": f"x.tar, sample s{step:02d}: is odd"})
    run.skips.report()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 22 and said[-1].endswith("  and 10 more")
    assert Counter("is odd" in line for line in said) == {True: 20, False: 2}
    run.monitor.close()
