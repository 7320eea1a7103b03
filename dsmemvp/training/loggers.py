"""Weights & Biases and MLflow beside TensorBoard (`training.loggers`). Each is called from a thread of its own, so that
a server that is slow or away neither delays nor ends training: its first error is said, and what it does not take is in
RUN/metrics.jsonl all the same.

Their own environment variables say where they write: WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI and so on. By
default Weights & Biases writes to RUN/wandb and its server, MLflow to files in OUTPUT/mlruns. RUN/NAME-run.txt holds
the name that a run has there; a run that resumes continues that one.
"""

import importlib
import importlib.util
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dsmemvp.atomic_files import replace_file
from dsmemvp.config.reading import leaves
from dsmemvp.data.location import masked
from dsmemvp.errors import UserError

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}
"""Modules, which are the loggers' names, and the packages that bring them."""
PROJECT = "dsmemvp"
WAITING = 10_000
"""Most calls that wait for a logger; further ones are dropped."""
END = 60.0
"""Seconds that a logger has at the end of a run for what still waits."""
MOST_TEXT = 500
"""Characters of a recipe's value that every MLflow server takes."""


class Logger(Protocol):
    def recipe(self, values: dict[str, Any]) -> None: ...
    def numbers(self, values: dict[str, float], step: int) -> None: ...
    def image(self, name: str, pixels: np.ndarray, step: int) -> None: ...
    def close(self) -> None: ...


def check_loggers(names: Sequence[str]) -> None:
    """Raises UserError for one whose package is missing."""
    for name in names:
        found = importlib.util.find_spec(name) if name in PACKAGES else None
        if name in PACKAGES and (found is None or found.origin is None):  # none, or a mere folder of that name here
            raise UserError(
                f"training.loggers: {name} needs the package {PACKAGES[name]}; pip install 'dsmemvp[{name}]'"
            )


def open_loggers(names: Sequence[str], folder: Path, say: Callable[[str], None]) -> list["InBackground"]:
    """Those of `names` that are not TensorBoard. `say` tells of errors."""
    made: dict[str, Callable[[Path], Logger]] = {"wandb": _Wandb, "mlflow": _MLflow}
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # neither of them is to tell its makers
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("WANDB_SILENT", "true")
    return [InBackground(name, partial(made[name], folder), say) for name in names if name in made]


def without_secrets(value: Any) -> Any:
    """A recipe's value without the passwords and signatures in its texts: servers show it to others."""
    if isinstance(value, dict):
        return {key: without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_secrets(inner) for inner in value]
    return masked(value) if isinstance(value, str) else value


class InBackground:
    """A logger whose calls are made by a thread, one after another."""

    def __init__(self, name: str, make: Callable[[], Logger], say: Callable[[str], None]):
        self._name, self._make, self._say = name, make, say
        self._calls: queue.Queue[tuple[str, tuple] | None] = queue.Queue(WAITING)
        self._broken = False
        with self._complaining():
            importlib.import_module(name)  # here: a process that is forked during an import may wait for it for ever
        self._thread = threading.Thread(target=self._work, daemon=True, name=name)
        self._thread.start()

    def call(self, method: str, *given: Any) -> None:
        """Call one of Logger's methods, later."""
        with suppress(queue.Full):
            self._calls.put_nowait((method, given))

    def close(self) -> None:
        """Wait until all is taken, but not for ever."""
        with suppress(queue.Full):
            self._calls.put_nowait(None)
        self._thread.join(END)
        if self._thread.is_alive():
            self._say(f"{self._name} has not taken everything after {END:.0f} s; metrics.jsonl has it all")

    def _work(self) -> None:
        logger: Logger | None = None
        with self._complaining():
            logger = self._make()
        while call := self._calls.get():
            if logger is not None:
                method, given = call
                with self._complaining():
                    getattr(logger, method)(*given)
        if logger is not None:
            with self._complaining():
                logger.close()

    @contextmanager
    def _complaining(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, training does not depend on it
            if not self._broken:
                lines = str(error).splitlines() or [""]
                self._say(f"{self._name} fails, and training continues: {type(error).__name__}: {lines[0][:300]}")
            self._broken = True


class _Wandb:
    def __init__(self, folder: Path):
        import wandb

        self._wandb = wandb
        known = _known_run(folder, "wandb") or _remember(folder, "wandb", uuid.uuid4().hex[:12])
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", folder.name),
            id=known,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", folder),
            settings=wandb.Settings(console="off", silent=True),
        )
        # its own count of steps cannot go back, where a run resumes before its end
        self._run.define_metric("*", step_metric="step")

    def recipe(self, values: dict[str, Any]) -> None:
        self._run.config.update(values, allow_val_change=True)

    def numbers(self, values: dict[str, float], step: int) -> None:
        self._run.log({"step": step, **values})

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._run.log({"step": step, name: self._wandb.Image(pixels)})

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, folder: Path):
        from mlflow import MlflowClient

        server = os.environ.get("MLFLOW_TRACKING_URI")
        if not server:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # without it MLflow 3 asks for a database
            server = (folder.resolve().parent / "mlruns").as_uri()
        self._client = MlflowClient(tracking_uri=server)
        self._run = _known_run(folder, "mlflow")
        if self._run:
            self._client.update_run(self._run, status="RUNNING")
        else:
            made = self._client.create_run(self._experiment(), run_name=folder.name)
            self._run = _remember(folder, "mlflow", made.info.run_id)

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        if known := self._client.get_experiment_by_name(name):
            return known.experiment_id
        try:
            return self._client.create_experiment(name)
        except Exception:  # another run has made it meanwhile
            if known := self._client.get_experiment_by_name(name):
                return known.experiment_id
            raise

    def recipe(self, values: dict[str, Any]) -> None:
        """A parameter of MLflow cannot change, a recipe can, where a run resumes: those that are new count."""
        known = self._client.get_run(self._run).data.params
        flat = {key: str(value)[:MOST_TEXT] for key, value in leaves(values)}
        for key in flat.keys() - known.keys():
            self._client.log_param(self._run, key, flat[key])

    def numbers(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in values.items()])

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._client.log_image(self._run, pixels, artifact_file=f"{name}/{step:08d}.png")

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _known_run(folder: Path, logger: str) -> str:
    """The name that the run in this folder has with a logger; empty if it has none yet."""
    try:
        return (folder / f"{logger}-run.txt").read_text().strip()
    except FileNotFoundError:
        return ""


def _remember(folder: Path, logger: str, name: str) -> str:
    replace_file(folder / f"{logger}-run.txt", f"{name}\n".encode())
    return name
