"""The lines of numbers when a run goes on."""

from dsmemvp.training.monitor import Monitor

WHOLE = '{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}\n'


def test_lines_of_later_steps_and_half_a_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(WHOLE + '{"step": 3, "a": 3.0}\n{"step": 4, "a"')
    monitor = Monitor(tmp_path, active=True, steps=4, start=2)
    assert path.read_text() == WHOLE
    monitor.record(3, {"a": 4.0}, "step 3  a 4")
    monitor.close()
    assert path.read_text() == WHOLE + '{"step": 3, "a": 4.0}\n'
