"""Which of how many processes this one is: one alone, or one of several that `mpirun` or `srun` started.

MPI is imported only where a launcher's environment says that there are several; a launcher that names its number of
processes in another variable is added to LAUNCHERS. Ranks exchange short messages, never samples.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LAUNCHERS = (
    # who starts, number of processes, this one's number; the first one found counts
    ("mpirun (Open MPI)", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("mpiexec (MPICH, Intel MPI)", "PMI_SIZE", "PMI_RANK"),
    # set in the steps of srun only: a batch script, which is one process, also finds SLURM_NTASKS
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)
POLL_S = 0.02


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    size: int = 1
    comm: Any = None
    """mpi4py's communicator; None where there is one process."""

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
    """Raises ValueError where MPI cannot be had, or does not see the processes that were started."""
    launcher, size, _ = _launched()
    if size == 1:
        return Ranks()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"{launcher} started {size} processes, but MPI cannot be loaded ({error})") from None
    comm = MPI.COMM_WORLD
    if comm.size != size:
        # each would take itself for the only one and write everything
        raise ValueError(
            f"{launcher} started {size} processes, but MPI sees {comm.size}; with Slurm use `srun --mpi=pmix`, else the"
            " mpirun of the MPI library that mpi4py loads"
        )
    return Ranks(comm.rank, comm.size, comm)


def speaks_for_all() -> bool:
    """Whether this process speaks for all, by the launcher's word alone (where MPI has failed)."""
    return _launched()[2] == 0


def _launched() -> tuple[str, int, int]:
    """(launcher, number of processes, this one's number)"""
    for launcher, size, rank in LAUNCHERS:
        if os.environ.get(size, "").isdigit():
            return launcher, int(os.environ[size]), int(os.environ.get(rank) or 0)
    return "", 1, 0
