"""Stands in front of a rank's command, as DSMEMVP_RUN does, and lets one thing go wrong at an exact place:

    FAULT=update:kill:3 FAULT_RANK=1 FAULT_ONCE=FOLDER python with_fault.py python -m dsmemvp train ...

kills rank 1 in its third optimizer step. Several faults are divided by commas. A file in FOLDER says that a fault has
happened: it does not come again when the command is started again.

`--serve` in place of a command imports everything once and forks a rank for every line on stdin (tests/faulty.py).
"""

import importlib
import importlib.abc
import json
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path


class Fault:
    def __init__(self, text: str):
        self.place, self.action, times = text.split(":")
        self._left = int(times)
        self._marker = Path(os.environ["FAULT_ONCE"]) / f"{text.replace(':', '-')}-on-{os.environ['RANK']}"

    def due(self) -> bool:
        """Called whenever the place is passed; true once, at the time that was asked for."""
        self._left -= 1
        if self._left or self._marker.exists():
            return False
        self._marker.touch()
        return True

    def __call__(self) -> None:
        if self.due():
            _act(self.action)


def _act(action: str) -> None:
    """Savers have finished before: what is lost is then known."""
    for thread in threading.enumerate():
        if thread.name == "checkpoint writer" and thread is not threading.current_thread():
            thread.join()
    print(f"fault: {action}", file=sys.stderr, flush=True)
    if action == "KILL":
        time.sleep(2)  # two beats: where this rank is, is known
    if action == "RuntimeError":
        raise RuntimeError("out of memory")
    if action == "UserError":
        raise importlib.import_module("dsmemvp.errors").UserError("this sample is odd")
    if action == "hang":
        time.sleep(3600)
    elif action == "again":  # a second signal, after more than SAME_REQUEST
        time.sleep(4)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3600)
    elif action.startswith("group-"):  # as Slurm does: to every process of a task
        os.killpg(0, signal.Signals[f"SIG{action.removeprefix('group-')}"])
        time.sleep(6)  # torch's loader looks every 5 s whether its workers, and they whether it, are alive
    else:
        os.kill(os.getpid(), signal.Signals[f"SIG{action}"])


def _before(owner: object, name: str, act: Callable[[], object]) -> None:
    old = getattr(owner, name)

    def wrapped(*given, **named):
        act()
        return old(*given, **named)

    setattr(owner, name, wrapped)


def _within_import(fault: Fault) -> None:
    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == "dsmemvp.training.loop" or name == "dsmemvp.evaluation.evaluate":
                fault()

    sys.meta_path.insert(0, Finder())


def _in_backward(fault: Fault) -> None:
    engine = importlib.import_module("dsmemvp.training.engine")
    old = engine.loss_sum

    def loss_sum(*given):
        loss = old(*given)
        loss.register_hook(lambda gradient: fault())
        return loss

    engine.loss_sum = loss_sum


def _in_loss(fault: Fault) -> None:
    engine = importlib.import_module("dsmemvp.training.engine")
    old = engine.loss_sum
    engine.loss_sum = lambda *given: old(*given) * (float(fault.action) if fault.due() else 1.0)


def _in_flush(fault: Fault) -> None:
    """Of a checkpoint: state.json is there when the first file is flushed, the folder is flushed before the rename, the
    one above it after the rename."""
    checkpoint = importlib.import_module("dsmemvp.checkpoints.checkpoint")
    old = checkpoint.flush

    def flush(path: Path) -> None:
        if fault.place == "save-flush" or (fault.place == "save-renamed" and path.name == "checkpoints"):
            fault()
        old(path)
        if fault.place == "save-rename" and path.name.startswith("partial-"):
            fault()

    checkpoint.flush = flush


def _in_pruning(fault: Fault) -> None:
    """When one file of a checkpoint that is taken away is gone."""
    choosing = importlib.import_module("dsmemvp.checkpoints.choosing")
    old = choosing.shutil.rmtree

    def rmtree(path: Path | str, **named) -> None:
        if Path(path).name.startswith("old-"):
            next(Path(path).iterdir()).unlink()
            fault()
        old(path, **named)

    choosing.shutil.rmtree = rmtree


def _in_connecting(fault: Fault) -> None:
    """Before this rank connects to rank 0's heartbeat server, which then waits for it; where that is, is said."""
    heartbeat = importlib.import_module("dsmemvp.fault_tolerance.heartbeat")
    old = heartbeat.connect

    def connect(address: str, port: int, *given):
        print(f"heartbeat server: {address} {port}", file=sys.stderr, flush=True)
        fault()
        return old(address, port, *given)

    heartbeat.connect = connect


def _at_phase(fault: Fault) -> None:
    """When the main thread begins a phase of that name, of all those that it announces to its heartbeat."""
    heartbeat = importlib.import_module("dsmemvp.fault_tolerance.heartbeat")

    def listener(phase: str, step: int) -> None:
        if phase == fault.place:
            fault()

    heartbeat.Heartbeat.listeners.append(listener)


PHASES = ("loading", "reading", "forward and backward", "validating", "saving")
WITHIN = {
    **dict.fromkeys(PHASES, _at_phase),
    "import": _within_import,
    "connect": _in_connecting,
    "backward": _in_backward,
    "loss": _in_loss,
    "save-flush": _in_flush,
    "save-rename": _in_flush,
    "save-renamed": _in_flush,
    "prune": _in_pruning,
}
BEFORE = {
    "join": ("dsmemvp.distributed.ranks", "join_ranks"),
    "forward": ("dsmemvp.model", "VisualLanguageModel.forward"),
    "update": ("torch.optim", "AdamW.step"),
    "evaluation": ("dsmemvp.evaluation.answering", "Answering.__call__"),
    "limit": ("dsmemvp.evaluation.answering", "Answering._limit"),
    "save-write": ("dsmemvp.training.checkpoint_manager", "save_checkpoint"),
    "save-tensors": ("dsmemvp.checkpoints.checkpoint", "_write_tensors"),
}


def _arrange(fault: Fault) -> None:
    if fault.place in WITHIN:
        WITHIN[fault.place](fault)
        return
    module, name = BEFORE[fault.place]
    *owners, name = name.split(".")
    owner = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    _before(owner, name, fault)


def _run(command: list[str]) -> None:
    if command[1] != "-m":
        sys.argv = command[1:]
        sys.path[0] = str(Path(command[1]).parent)
        runpy.run_path(command[1], run_name="__main__")
        sys.exit()
    assert command[2] == "dsmemvp"
    sys.argv = ["dsmemvp", *command[3:]]
    if os.environ["RANK"] == os.environ.get("FAULT_RANK"):
        for text in os.environ["FAULT"].split(","):
            _arrange(Fault(text))
    from dsmemvp.__main__ import run

    run()


def _serve() -> None:
    """Ranks without the seconds of importing. Answers every line with a process's number, or with its exit code, null
    while it has none."""
    for name in (
        "dsmemvp.cli.main",
        "dsmemvp.training.loop",
        "dsmemvp.fault_tolerance.heartbeat",
        "dsmemvp.evaluation.evaluate",
    ):
        importlib.import_module(name)
    assert threading.active_count() == 1  # a fork would lose the others
    for line in sys.stdin:
        asked = json.loads(line)
        if "poll" in asked:
            pid, status = os.waitpid(asked["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif answer := os.fork():
            pass
        else:
            os.setsid()
            for descriptor, path in ((0, os.devnull), (1, asked["log"]), (2, asked["log"])):
                os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), descriptor)
            os.environ.clear()
            os.environ.update(asked["environment"])
            _run(asked["command"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        _serve()
    else:
        _run(sys.argv[1:])
