"""Identify the process that trains a run, and whether it is alive: known on its own host, not on others."""

import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dsmemvp.json_text import parse_json

MOST = 1 << 22
"""Linux gives processes no higher number."""


@dataclass(frozen=True)
class Holder:
    """A process that trains."""

    token: str
    """Its own, whatever numbers are used again."""
    host: str
    process: int
    started: int
    """When, in clock ticks since the host was booted: no later process of this number has the same."""
    processes: str
    """Which boot and which PID namespace the number belongs to: who is in the same can see the process."""
    job: str
    """Slurm's number, or empty."""
    restart: int
    """How often Slurm had requeued the job."""
    since: str
    folder: int = 0
    """The run folder's inode: a copy of the folder has another one, and brings its holder's file along."""
    ending: bool = False
    """Whether it was asked to save and end."""

    def __str__(self) -> str:
        job = f" of job {self.job}" if self.job else ""
        return f"process {self.process} on {self.host}{job}, since {self.since}"


def own_holder(environment: Mapping[str, str]) -> Holder:
    """This process. Raises OSError if there is no /proc."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Holder(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        process=os.getpid(),
        started=_started(os.getpid()),
        processes=f"{boot} {os.readlink('/proc/self/ns/pid')}",
        job=environment.get("SLURM_JOB_ID", ""),
        restart=int(environment.get("SLURM_RESTART_COUNT") or 0),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
    )


def _started(process: int) -> int:
    """In clock ticks since the boot; -1 for one that is dead and not yet waited for. Raises OSError."""
    # behind the name, which may hold anything but ends at the last parenthesis: the state is the first, this the 20th
    fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return -1 if fields[0] in "ZX" else int(fields[19])


def is_alive(holder: Holder) -> bool:
    """Whether its process is there, of a holder whose `processes` are this process's own."""
    others = False
    try:
        os.kill(holder.process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        others = True
    try:
        return _started(holder.process) == holder.started
    except (FileNotFoundError, ProcessLookupError):  # of this user it is gone since; of others it may be hidden
        return others


def read_holder(content: bytes) -> Holder | None:
    """Whom these bytes of JSON name, beside whatever else; None for half of them, or what somebody else has written."""
    try:
        row = parse_json(content, "a lease")
    except ValueError:
        return None
    kinds = Holder.__annotations__
    if not isinstance(row, dict) or any(type(row.get(name)) is not kind for name, kind in kinds.items()):
        return None
    if not all(str(row[name]).isprintable() for name in kinds):  # it is shown in a line
        return None
    return Holder(**{name: row[name] for name in kinds}) if 0 < row["process"] < MOST else None
