"""Ranks save and end when the launcher that started them has gone. One that was killed cannot end them, and they would
train on unseen.

A process that no launcher has started is left alone whatever becomes of its shell: nohup, tmux and the like keep it.
"""

import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from dsmemvp.distributed.stopping import UNEXPECTED, Stop

PROGRAMS = {"deepspeed", "deepspeed.pt", "deepspeed.launcher.runner", "deepspeed.launcher.launch"}
PROGRAMS |= {"torchrun", "torch.distributed.run", "torch.distributed.launch", "slurmstepd"}
PROGRAMS |= {"mpirun", "mpiexec", "prterun", "prted", "orterun", "orted"}  # Open MPI
PROGRAMS |= {"mpiexec.hydra", "hydra_pmi_proxy", "hydra_bstrap_proxy"}  # MPICH, Intel MPI
"""Programs that start ranks and end with them, or Python modules that do."""
POLL = 1.0
"""Seconds between two looks at them."""
GRACE = 300.0
"""Seconds to save and end in."""


def own_launchers() -> list[psutil.Process]:
    """The launcher's processes among this one's ancestors; none if no launcher has started it. `deepspeed` has two on a
    node, and each may be killed alone."""
    with suppress(psutil.Error):
        return [process for process in psutil.Process().parents() if _program(process) in PROGRAMS]
    return []


def _program(process: psutil.Process) -> str:
    """The name of what it runs, of Python the script's or module's; empty if that cannot be known."""
    try:
        words, name = process.cmdline(), process.name()
    except psutil.Error:
        return ""
    if words and Path(words[0]).name.startswith("python"):
        return next((Path(word).name for word in words[1:] if not word.startswith("-")), "")
    return name


def _gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


@contextmanager
def ended_with_launcher(stop: Stop, grace: float = GRACE) -> Iterator[None]:
    """Within the block `stop` is asked for as soon as a process of the launcher is gone. If the block takes longer than
    `grace` seconds from then on, this process ends with UNEXPECTED. To be entered early: a launcher that is gone before
    is not known."""
    launchers, over = own_launchers(), threading.Event()
    if launchers:
        # named now: of a process that has gone, its command line has gone as well
        named = [(process, f"{_program(process)} (process {process.pid})") for process in launchers]
        threading.Thread(target=_follow, args=(named, stop, over, grace), name="orphans", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _follow(launchers: list[tuple[psutil.Process, str]], stop: Stop, over: threading.Event, grace: float) -> None:
    while not over.wait(POLL):
        for name in [name for process, name in launchers if _gone(process)]:
            _silence()
            _say(f"{name}, which started this process, has gone: saving, then ending, within {grace:g} s")
            if not stop.asked:
                stop.asked, stop.since = True, time.monotonic()
            if not over.wait(grace):
                _say("not ended in time: ending at once")
                os._exit(UNEXPECTED)
            return


def _silence() -> None:
    """What was read by the launcher alone goes to /dev/null from here on: a line that nobody reads is an error, which
    would come before the save."""
    for descriptor in (1, 2):
        look = select.poll()
        look.register(descriptor, 0)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in look.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"dsmemvp: process {os.getpid()}: {text}\n".encode())
