"""What is asked of Slurm, as options of the commands that submit jobs."""

import argparse

from dsmemvp.submit import Allocation


def allocation_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--nodes", type=int, default=1, help="number of nodes (default: 1)")
    command.add_argument("--gpus-per-node", type=int, default=0, help="GPUs of a node; one rank for each")
    command.add_argument("--cpu-ranks-per-node", type=int, default=0, help="ranks of a node, for nodes without GPUs")
    command.add_argument(
        "--cpus-per-gpu", type=int, metavar="N", help="CPU cores of every rank (default: the start file's)"
    )
    command.add_argument("--time", help="time limit, as in 12:00:00 or 1-00:00:00 (default: the start file's)")
    command.add_argument("--partition", help="as for sbatch")
    command.add_argument("--account", help="as for sbatch")
    command.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="any other option of sbatch: --sbatch=--mail-type=END; repeatable",
    )
    command.add_argument("--print", action="store_true", help="print the text and submit nothing")


def asked_of_slurm(given: argparse.Namespace) -> Allocation:
    """Raises UserError naming the option."""
    asked = Allocation(
        given.nodes,
        given.gpus_per_node,
        given.cpu_ranks_per_node,
        given.cpus_per_gpu,
        given.time,
        given.partition,
        given.account,
        given.sbatch,
    )
    asked.check()
    return asked
