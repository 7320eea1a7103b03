"""What a check has found, and where it was made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from dsmemvp.distributed.launchers import find_place


@dataclass(frozen=True)
class Finding:
    level: Literal["ok", "warning", "FAIL"]
    """FAIL: a run would fail."""
    what: str
    found: str
    todo: str = ""
    """What to do, if it is not ok."""

    def line(self, host: str) -> str:
        return f"{host}  {self.level:<7}  {self.what:<15}  {self.found}" + (f"; {self.todo}" if self.todo else "")


def ok(what: str, found: str) -> Finding:
    return Finding("ok", what, found)


def warning(what: str, found: str, todo: str) -> Finding:
    return Finding("warning", what, found, todo)


def fail(what: str, found: str, todo: str = "") -> Finding:
    return Finding("FAIL", what, found, todo)


@dataclass(frozen=True)
class Here:
    """This process among those that were started, and what it would compute on."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    address: str = ""
    """Host of the first rank; empty for a process that is the only one."""
    port: int = 0
    on_gpus: bool = False

    @property
    def several_nodes(self) -> bool:
        return self.local_world < self.world


def find_here(environment: Mapping[str, str]) -> Here:
    """Raises UserError if a launcher's words do not say it."""
    on_gpus = environment.get("DS_ACCELERATOR", "cuda") == "cuda" and torch.cuda.is_available()
    if "RANK" in environment:
        world = int(environment["WORLD_SIZE"])
        local_world = int(environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or world)
        local_rank = int(environment.get("LOCAL_RANK", "0"))
        address, port = environment.get("MASTER_ADDR", ""), int(environment.get("MASTER_PORT", "0"))
        return Here(int(environment["RANK"]), world, local_rank, local_world, address, port, on_gpus)
    place = find_place(environment)
    if place is None:
        return Here(on_gpus=on_gpus)
    return Here(place.rank, place.world, place.local_rank, place.local_world, place.address, place.port, on_gpus)


def gib(number: float) -> str:
    """Bytes as GiB, or MiB below one."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
