"""Lines in a log, by a clock that the test moves."""

from dsmemvp import progress
from dsmemvp.progress import Progress


def test_a_line_every_half_minute_with_rate_and_time_left(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress("captions off", total=1000, unit="sample", done=400)
    for seconds, samples in ((29, 58), (1, 2), (20, 40), (9, 10), (2, 10)):
        now[0] += seconds
        shown.advance(samples)
    shown.close()
    lines = [line.partition("  ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "captions off: 460 of 1000 samples, 2.0 samples/s, 00:04:30 left",
        "captions off: 520 of 1000 samples, 2.0 samples/s, 00:04:04 left",
    ]


def test_what_takes_long_is_told_by_the_seconds_of_one(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress("study", total=5, unit="run")
    now[0] = 80.0
    shown.advance(2)
    shown.close()
    assert "study: 2 of 5 runs, 40 s per run, 00:02:00 left" in capsys.readouterr().out


def test_other_ranks_say_nothing(capsys, monkeypatch):
    monkeypatch.setattr(Progress, "every", 0.0)
    shown = Progress("captions off", total=10, unit="sample", active=False)
    shown.advance(5)
    shown.close()
    assert capsys.readouterr() == ("", "")
