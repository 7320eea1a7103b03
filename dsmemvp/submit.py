"""A recipe and a number of nodes -> the text of a start file in slurm/ with its #SBATCH lines filled in.

The start files in slurm/ are the source; dsmemvp/slurm/ links to them, so that an installed package has them too. The
text is complete: what it runs stands in it, and it can be kept and given to `sbatch` as it is.
"""

import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from dsmemvp.errors import UserError

START_FILES = Path(__file__).with_name("slurm")


@dataclass
class Allocation:
    """What is asked of Slurm; None leaves the start file's own line."""

    nodes: int = 1
    gpus_per_node: int = 0
    """One rank for each. 0: nodes without GPUs, with `cpu_ranks_per_node`."""
    cpu_ranks_per_node: int = 0
    cpus_per_rank: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    more: list[str] = field(default_factory=list)
    """Further options of sbatch, such as "--mail-type=END"."""

    @property
    def ranks_per_node(self) -> int:
        return self.gpus_per_node or self.cpu_ranks_per_node

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def check(self) -> None:
        """Raises UserError naming the option."""
        if self.nodes < 1:
            raise UserError(f"--nodes: must be positive, is {self.nodes}")
        if min(self.gpus_per_node, self.cpu_ranks_per_node) < 0 or self.ranks_per_node < 1:
            raise UserError("--gpus-per-node: give a positive number, or --cpu-ranks-per-node for nodes without GPUs")
        if self.gpus_per_node and self.cpu_ranks_per_node:
            raise UserError("--cpu-ranks-per-node: is for nodes without GPUs; leave out --gpus-per-node")
        if self.cpus_per_rank is not None and self.cpus_per_rank < 1:
            raise UserError(f"--cpus-per-gpu: must be positive, is {self.cpus_per_rank}")
        for option in self.more:
            if not option.startswith("-") or not option.isprintable():
                raise UserError(f"--sbatch: {option!r} is not an option of sbatch; write --sbatch=--mail-type=END")


def sbatch_text(name: str, arguments: list[str], asked: Allocation, start_file: str = "train.sbatch") -> str:
    """The start file of that name for a job called `name` that is given `arguments`: the recipe's path and overrides.
    Raises ValueError."""
    asked.check()
    text = (START_FILES / start_file).read_text(encoding="utf-8")
    lines = {
        "job-name": "-".join(name.split()),
        "nodes": asked.nodes,
        "gpus-per-node": asked.gpus_per_node,
        "ntasks-per-node": asked.ranks_per_node,
        "cpus-per-task": asked.cpus_per_rank,
        "time": asked.time,
    }
    for key, value in lines.items():
        if value is not None:
            line = f"#SBATCH --{key}={_one_line(key, value)}\n" if value else ""
            text, found = re.subn(rf"^#SBATCH --{key}=.*\n", line.replace("\\", r"\\"), text, flags=re.M)
            assert found == 1, key
    more = {"partition": asked.partition, "account": asked.account}
    added = [f"--{key}={_one_line(key, value)}" for key, value in more.items() if value] + asked.more
    end = text.index("\n", text.rindex("#SBATCH ")) + 1
    options = "".join(f"#SBATCH {option}\n" for option in added)
    return f"{text[:end]}{options}\nset -- {shlex.join(arguments)}\n{text[end:]}"


def submit(text: str) -> str:
    """Give it to sbatch; returns what sbatch says. Raises UserError with sbatch's own words."""
    try:
        done = subprocess.run(["sbatch"], input=text, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("there is no sbatch here; `--print` shows what would be submitted") from None
    if done.returncode:
        raise UserError(f"sbatch refuses the job: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout.strip()


def _one_line(key: str, value: object) -> str:
    text = str(value)
    if not text.isprintable() or " " in text:
        raise UserError(f"--{key}: {text!r} cannot stand in a line of #SBATCH")
    return text
