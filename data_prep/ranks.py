"""Number and count of this command's processes: one alone, or one of several that `mpirun` or `srun` started.

MPI is imported only if a launcher's environment says that there are several
(dsmemvp/distributed/launchers.py). Ranks exchange short messages, never samples.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsmemvp.distributed.launchers import launched
from dsmemvp.errors import UserError

POLL_S = 0.02


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    size: int = 1
    comm: Any = None
    """mpi4py's communicator; None if there is one process."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self, tick: Callable[[], None] = lambda: None) -> None:
        """Until all ranks are here; `tick` is called now and then. MPI's own barrier would keep a core busy."""
        if self.comm is not None:
            request = self.comm.Ibarrier()
            while not request.Test():
                tick()
                time.sleep(POLL_S)

    def share(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        self.wait()
        return value if self.comm is None else self.comm.bcast(value)

    def collect(self, value: Any, tick: Callable[[], None] = lambda: None) -> list:
        """Every rank's value, on every rank."""
        self.wait(tick)
        return [value] if self.comm is None else self.comm.allgather(value)

    def abort(self) -> None:
        """End all ranks: after an error that no rank expected, the others would wait for this one for ever."""
        if self.comm is not None:
            self.comm.Abort(1)


def find_ranks() -> Ranks:
    """Raises UserError if MPI cannot be had, or does not see the processes that were started."""
    launcher, size, _ = launched(os.environ)
    if size == 1:
        return Ranks()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(f"{launcher} started {size} processes, but MPI cannot be loaded ({error})") from None
    comm = MPI.COMM_WORLD
    if comm.size != size:
        # each would take itself for the only one and write everything
        raise UserError(
            f"{launcher} started {size} processes, but MPI sees {comm.size}; with Slurm use `srun --mpi=pmix`, else the"
            " mpirun of the MPI library that mpi4py loads"
        )
    return Ranks(comm.rank, comm.size, comm)


def speaks_for_all() -> bool:
    """Whether this process reports for all ranks, by the launcher's variables alone (if MPI has failed)."""
    return launched(os.environ)[2] == 0
