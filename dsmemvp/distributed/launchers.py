"""Find this process's rank, the number of ranks and the first one's address, with any launcher.

`deepspeed` and torchrun set all of it (RANK and the like). `srun` says who is who and which nodes there are, so that
nothing is asked of Slurm's programs, which a container lacks; the port follows from the job's number, so that two jobs
on a node do not meet. Under `mpirun` a child
process asks MPI: in a training process itself MPI is never initialised, since its PMIx and NCCL get into each other's
way. A launcher that names its processes in other variables is added to LAUNCHERS.
"""

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from dsmemvp.errors import UserError

LAUNCHERS = (
    # who starts, number of processes, this one's number; the first one found counts
    ("mpirun (Open MPI)", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("mpiexec (MPICH, Intel MPI)", "PMI_SIZE", "PMI_RANK"),
    # set in the steps of srun only: a batch script, which is one process, also finds SLURM_NTASKS
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)
ASK_MPI = """
import socket
from mpi4py import MPI
world = MPI.COMM_WORLD
local = world.Split_type(MPI.COMM_TYPE_SHARED)
with socket.socket() as probe:
    probe.bind(("", 0))
    found = socket.gethostname(), probe.getsockname()[1]
print(world.rank, world.size, local.rank, local.size, *world.bcast(found))
"""
FIRST_PORT, PORTS = 12_000, 20_000
"""Ports of Slurm jobs: below those that systems give out by themselves."""


@dataclass(frozen=True)
class Place:
    """One process among all."""

    rank: int
    world: int
    local_rank: int
    """Its number on its node."""
    local_world: int
    """Processes on its node."""
    address: str
    """Host of the first rank."""
    port: int

    def variables(self) -> dict[str, str]:
        """What torch and DeepSpeed look for in the environment."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def launched(environment: Mapping[str, str]) -> tuple[str, int, int]:
    """(launcher, number of processes, this one's number), of those that say no more than that."""
    for launcher, size, rank in LAUNCHERS:
        if environment.get(size, "").isdigit():
            return launcher, int(environment[size]), int(environment.get(rank) or 0)
    return "", 1, 0


def own_rank(environment: Mapping[str, str]) -> int:
    """This process's number, by the launcher's variables alone."""
    return int(environment["RANK"]) if "RANK" in environment else launched(environment)[2]


def find_place(environment: Mapping[str, str]) -> Place | None:
    """None if this process is the only one. Not for environments that have RANK: there all is said. MASTER_ADDR and
    MASTER_PORT, if they are set, count for more than what is found. Raises UserError with what to do."""
    launcher, world, rank = launched(environment)
    if world == 1:
        return None
    found = _slurm_place(environment, world, rank) if launcher == "srun" else _ask_mpi(launcher, world)
    address, port = environment.get("MASTER_ADDR") or found.address, environment.get("MASTER_PORT") or found.port
    return Place(found.rank, found.world, found.local_rank, found.local_world, address, int(port))


def _slurm_place(environment: Mapping[str, str], world: int, rank: int) -> Place:
    try:
        local_rank, node = int(environment["SLURM_LOCALID"]), int(environment["SLURM_NODEID"])
        local_world = tasks_of_nodes(environment["SLURM_STEP_TASKS_PER_NODE"])[node]
        first, job = first_node(environment["SLURM_STEP_NODELIST"]), int(environment["SLURM_JOB_ID"])
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"srun started {world} processes, but where they are is not known ({error!r})") from None
    return Place(rank, world, local_rank, local_world, first, FIRST_PORT + job % PORTS)


def first_node(text: str) -> str:
    """Of Slurm's list of nodes: "rack[1-2]n[007-009,012],login" -> "rack1n007"."""
    name = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", text).partition(",")[0]
    if not name or "[" in name:
        raise ValueError(f"SLURM_STEP_NODELIST is {text!r}")
    return name


def tasks_of_nodes(text: str) -> list[int]:
    """Slurm's "2(x3),1" -> [2, 2, 2, 1]."""
    tasks: list[int] = []
    for part in text.split(","):
        number, _, times = part.partition("(x")
        tasks += [int(number)] * int(times.rstrip(")") or 1)
    return tasks


def _ask_mpi(launcher: str, world: int) -> Place:
    asked = subprocess.run([sys.executable, "-c", ASK_MPI], capture_output=True, text=True)
    words = asked.stdout.split()
    if asked.returncode or len(words) != 6:
        why = (asked.stderr.strip().splitlines() or ["no answer"])[-1]
        raise UserError(f"{launcher} started {world} processes, but MPI does not say where they are ({why})")
    rank, size, local_rank, local_world = map(int, words[:4])
    if size != world:
        raise UserError(
            f"{launcher} started {world} processes, but MPI sees {size}; use the mpirun of the MPI library that mpi4py"
            " loads"
        )
    address = "127.0.0.1" if local_world == size else words[4]
    return Place(rank, size, local_rank, local_world, address, int(words[5]))
