"""Weights & Biases and MLflow, offline: they have what metrics.jsonl has, a run that resumes goes on in the same one,
only the first rank writes, and nothing that goes wrong in them ends training."""

import importlib.machinery
import importlib.util
import time
from pathlib import Path

import pytest
from faulty import numbers, run

from dsmemvp.config.reading import read_recipe
from dsmemvp.errors import UserError
from dsmemvp.training import loggers
from dsmemvp.training.loggers import InBackground, check_loggers
from dsmemvp.training.monitor import Monitor

wandb = pytest.importorskip("wandb")
pytest.importorskip("mlflow")


def wandb_records(file: Path) -> list:
    """Of a .wandb file: records of LevelDB's log format, in blocks of 32 KiB, behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, part, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        part += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole one, or the last part of one
            found.append(Record.FromString(part))
            part = b""
    return found


def wandb_history(folder: Path) -> list[dict[str, str]]:
    """The rows of all of a run's files, in the order of its starts."""
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    records = [
        record for file in files for record in wandb_records(file) if record.WhichOneof("record_type") == "history"
    ]
    return [{item.key or "/".join(item.nested_key): item.value_json for item in r.history.item} for r in records]


def mlflow_runs(store: Path) -> list:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store.as_uri())
    experiment = client.get_experiment_by_name("dsmemvp")
    return [] if experiment is None else client.search_runs([experiment.experiment_id])


def mlflow_history(store: Path, run: str, name: str) -> dict[int, float]:
    from mlflow import MlflowClient

    return {m.step: m.value for m in MlflowClient(tracking_uri=store.as_uri()).get_metric_history(run, name)}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    for name in ("WANDB_PROJECT", "WANDB_DIR", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    wandb.teardown()  # it reads its variables once in a process


def test_a_run_of_two_ranks_that_resumes_is_one_run_in_both(recipe_path, tmp_path):
    given = ["train", str(recipe_path), "name=run", "training.loggers=[wandb, mlflow]", "training.epochs=1"]
    for more in (["training.stop_at_step=3"], []):
        done = run([*given, *more], tmp_path / "logs", ranks=2)
        assert set(done.codes) == {0} and "training continues" not in done.text, done.text
    folder, store = tmp_path / "runs" / "run", tmp_path / "runs" / "mlruns"
    wanted = numbers(folder)
    assert len(wanted) == 6 and not list(folder.glob("*tfevents*"))

    (found,) = mlflow_runs(store)
    assert found.info.status == "FINISHED" and found.info.run_name == "run"
    assert mlflow_history(store, found.info.run_id, "loss/train") == wanted
    assert found.data.params["training.loggers"] == "['wandb', 'mlflow']"

    assert len(list(folder.glob("wandb/offline-run-*"))) == 2
    names = {path.name.rpartition("-")[2] for path in folder.glob("wandb/offline-run-*")}
    assert names == {(folder / "wandb-run.txt").read_text().strip()}
    history = [row for row in wandb_history(folder) if "loss/train" in row]
    assert {int(row["step"]): float(row["loss/train"]) for row in history} == wanted and len(history) == 6


def test_other_ranks_write_nothing(tmp_path):
    Monitor(tmp_path / "run", active=False, steps=4, start=0, loggers=["wandb", "mlflow"]).close()
    assert not list(tmp_path.iterdir())


def test_images_and_stages_and_a_recipe_that_has_changed(tmp_path):
    import numpy as np

    folder = tmp_path / "run"
    for epochs in (3, 4):
        monitor = Monitor(folder, active=True, steps=4, start=0, loggers=["wandb", "mlflow"])
        monitor.stage = "text"
        data = {"train": ["https://me:sEcret@host/x?sig=sEcret"]}
        monitor.show_recipe({"name": "run", "training": {"epochs": epochs}, "data": data}, "", 0)
        monitor.record(1, {"loss/train": float(epochs)}, "step 1")
        monitor.show_image("search/pi", np.zeros((4, 4, 3), dtype=np.uint8), 1)
        monitor.close()
    (found,) = mlflow_runs(tmp_path / "mlruns")
    shown = {"name": "run", "training.epochs": "3", "data.train": "['https://***@host/x?***']"}
    assert found.data.params == shown and found.data.metrics == {"loss/text/train": 4.0}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"sEcret" in path.read_bytes()]
    assert list(tmp_path.glob("mlruns/*/*/artifacts/search/pi/00000001.png"))
    assert [row["loss/text/train"] for row in wandb_history(folder) if "loss/text/train" in row] == ["3", "4"]
    assert list(folder.glob("wandb/offline-run-*/files/media/images/**/*.png"))


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_a_missing_package_is_one_line_before_anything_is_loaded(monkeypatch, name, package):
    # none at all; or the folder ./wandb, which wandb itself writes
    for found in (None, importlib.machinery.ModuleSpec(name, None)):
        monkeypatch.setattr(importlib.util, "find_spec", lambda asked, found=found: found)
        with pytest.raises(UserError, match=rf"^training.loggers: {name} needs the package {package}; pip install "):
            check_loggers(["tensorboard", name])
    check_loggers(["tensorboard"])


def test_a_logger_that_nobody_knows_is_refused(recipe_path):
    assert read_recipe(recipe_path, ["training.loggers=mlflow"]).training.loggers == ["mlflow"]
    with pytest.raises(UserError, match=r"training\.loggers"):
        read_recipe(recipe_path, ["training.loggers=[comet]"])


def test_a_server_that_is_away_is_told_once_and_the_numbers_are_in_metrics_jsonl(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))  # without a login
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monitor = Monitor(tmp_path / "run", active=True, steps=4, start=0, loggers=["wandb", "mlflow"])
    for step in (1, 2):
        monitor.record(step, {"loss/train": 1.0 / step}, f"step {step}")
    monitor.close()
    out = capsys.readouterr().out
    assert out.count("wandb fails, and training continues: UsageError: No API key configured") == 1
    assert out.count("mlflow fails, and training continues: ") == 1 and out.count("\n") == 4
    assert numbers(tmp_path / "run") == {1: 1.0, 2: 0.5}


class Bad:
    """Takes its time, then raises."""

    def __init__(self):
        self.got = []

    def numbers(self, values, step):
        self.got.append(step)
        if step == 1:
            raise SystemError("first\nsecond line")

    def close(self):
        time.sleep(60)


def test_a_logger_that_raises_or_hangs_does_neither_to_the_run(monkeypatch):
    monkeypatch.setattr(loggers, "END", 0.3)
    said, bad = [], Bad()
    logger = InBackground("mlflow", lambda: bad, said.append)
    for step in range(1, 4):
        logger.call("numbers", {}, step)
    logger.close()
    assert said == [
        "mlflow fails, and training continues: SystemError: first",
        "mlflow has not taken everything after 0 s; metrics.jsonl has it all",
    ]
    assert bad.got == [1, 2, 3]


def test_calls_that_nobody_takes_are_dropped(monkeypatch):
    monkeypatch.setattr(loggers, "WAITING", 2)
    monkeypatch.setattr(loggers, "END", 0.1)
    logger = InBackground("mlflow", lambda: time.sleep(60), lambda text: None)
    for step in range(100):
        logger.call("numbers", {}, step)
    logger.close()
