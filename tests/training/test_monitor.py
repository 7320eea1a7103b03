"""The lines of numbers when a run goes on."""

import contextlib
import json
import os

import pytest
from mounting import tmpfs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsmemvp.training.monitor import Monitor, write_json

WHOLE = '{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}\n'


def test_lines_of_later_steps_and_half_a_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(WHOLE + '{"step": 3, "a": 3.0}\n{"step": 4, "a"')
    monitor = Monitor(tmp_path, active=True, steps=4, start=2)
    assert path.read_text() == WHOLE
    monitor.record(3, {"a": 4.0}, "step 3  a 4")
    monitor.close()
    assert path.read_text() == WHOLE + '{"step": 3, "a": 4.0}\n'


@pytest.mark.parametrize("name", ["skipped", "order", "metrics"])
def test_every_file_of_a_run_s_record_is_wound_back(tmp_path, name):
    path = tmp_path / f"{name}.jsonl"
    path.write_text(WHOLE + '{"step": 3, "a": 3.0}\n')
    monitor = Monitor(tmp_path, active=True, steps=4, start=1)
    assert [row["step"] for row in monitor.written(name)] == [1]
    monitor.write(name, {"step": 2, "text": "Größe"})
    monitor.close()
    assert path.read_text() == '{"step": 1, "a": 1.0}\n{"step": 2, "text": "Größe"}\n'


def test_a_run_from_its_beginning_keeps_no_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(WHOLE)
    Monitor(tmp_path, active=True, steps=4, start=0).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_files_whose_lines_have_no_step_are_not_touched(tmp_path):
    content = '{"index": 1}\n{"index": 2}\nhalf a li'
    (tmp_path / "predictions.jsonl").write_text(content)
    (tmp_path / "metrics.jsonl").write_text(WHOLE)
    Monitor(tmp_path, active=True, steps=4, start=0).close()
    assert (tmp_path / "predictions.jsonl").read_text() == content


def test_numbers_of_a_step_are_found_again(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(WHOLE + '{"step": 2, "b": 2.0}\n')
    monitor = Monitor(tmp_path, active=True, steps=4, start=2)
    assert monitor.recorded(2) == {"a", "b"} and monitor.recorded(3) == set()
    monitor.record(2, {}, "step 2  nothing new")
    monitor.close()
    assert (tmp_path / "metrics.jsonl").read_text() == WHOLE + '{"step": 2, "b": 2.0}\n'


def test_a_line_is_on_its_way_to_the_disk_as_soon_as_it_is_written(tmp_path):
    monitor = Monitor(tmp_path, active=True, steps=4, start=0)
    monitor.write("order", {"step": 1, "samples": [3, 1]})
    assert json.loads((tmp_path / "order.jsonl").read_text()) == {"step": 1, "samples": [3, 1]}
    assert list(monitor.written("order")) == [{"step": 1, "samples": [3, 1]}]
    monitor.close()


def test_other_ranks_than_the_first_touch_and_say_nothing(tmp_path, capsys):
    folder = tmp_path / "run"
    monitor = Monitor(folder, active=False, steps=4, start=0)
    monitor.say("x")
    monitor.record(1, {"a": 1.0}, "x")
    monitor.write("order", {"step": 1})
    monitor.advance()
    assert list(monitor.written("order")) == []
    monitor.close()
    assert not folder.exists() and capsys.readouterr() == ("", "")


def test_what_a_full_disk_did_not_take_is_written_when_there_is_room(tmp_path, capsys):
    with tmpfs(tmp_path / "full", 1) as folder:
        monitor = Monitor(folder, active=True, steps=999, start=0)
        monitor.record(1, {"a": 0.5}, "step 1")
        filler = folder / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        text = "x" * 200
        for step in range(2, 500):  # 100 KB, more than any buffer has room for
            monitor.write("metrics", {"step": step, "text": text})
            monitor.write("order", {"step": step})  # a file that is not there yet
        said = capsys.readouterr().out
        assert said.count("metrics cannot be written, and training continues") == 1
        filler.unlink()
        monitor.record(500, {"a": 0.5}, "step 500")
        monitor.close()
        assert [row["step"] for row in monitor.written("metrics")] == list(range(1, 501))
        assert [row["step"] for row in monitor.written("order")] == list(range(2, 500))


def test_tensorboard_meets_a_full_disk_in_one_line_and_loses_nothing(tmp_path, capfd):
    with tmpfs(tmp_path / "full", 1) as folder:
        monitor = Monitor(folder, active=True, steps=999, start=0)
        monitor.record(1, {"loss/train": 1.0}, "step 1")
        filler = folder / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        for step in range(2, 500):
            monitor.record(step, {f"loss/{n}": 0.5 for n in range(20)} | {"loss/train": 1.0 / step}, f"step {step}")
        said = capfd.readouterr()
        assert said.out.count("tensorboard cannot be written, and training continues: [Errno 28] No space left") == 1
        assert said.err == ""
        filler.unlink()
        monitor.record(500, {"loss/train": 1 / 500}, "step 500")
        monitor.close()
        points = EventAccumulator(str(folder), {"scalars": 0}).Reload().Scalars("loss/train")
        assert [(point.step, point.value) for point in points] == [
            (step, pytest.approx(1 / step)) for step in range(1, 501)
        ]


def test_tensorboard_calls_a_run_by_its_folder_and_forgets_later_steps_where_it_goes_on(tmp_path):
    for start, value in ((0, 1.0), (2, 2.0)):
        monitor = Monitor(tmp_path / "demo", active=True, steps=4, start=start)
        monitor.show_recipe({}, "name: demo\nseed: 0\n", start)
        for step in range(start + 1, 5):
            monitor.record(step, {"loss/train": value}, "x")
        monitor.close()
    assert {path.parent for path in tmp_path.rglob("*tfevents*")} == {tmp_path / "demo"}
    board = EventAccumulator(str(tmp_path / "demo")).Reload()
    assert [(point.step, point.value) for point in board.Scalars("loss/train")] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    texts = [event.tensor_proto.string_val[0].decode() for event in board.Tensors("recipe/text_summary")]
    assert texts == ["    name: demo\n    seed: 0\n"] * 2


def test_a_recipe_is_written_in_the_place_of_whatever_stood_there(tmp_path):
    os.mkfifo(tmp_path / "recipe.json")  # to open it for writing would wait for ever
    write_json(tmp_path / "recipe.json", {"name": "x"})
    assert json.loads((tmp_path / "recipe.json").read_text()) == {"name": "x"}
