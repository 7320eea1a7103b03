"""All checks of one node, printed by its first rank."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from dsmemvp.config.recipe import Recipe
from dsmemvp.doctor import machine, needs, network, software, storage
from dsmemvp.doctor.finding import Finding, Here, find_here, ok, warning


def check_node(recipe: Recipe | None) -> list[str]:
    """Prints what is found here, a line each; returns the names of what would make a run fail. One rank of each node
    looks, the others leave it to that one. Raises UserError if a launcher does not say who is who."""
    here = find_here(os.environ)
    if here.local_rank:
        return []
    findings = find(recipe, here, os.environ)
    print(*(finding.line(socket.gethostname()) for finding in findings), sep="\n", flush=True)
    return [finding.what for finding in findings if finding.level == "FAIL"]


def find(recipe: Recipe | None, here: Here, environment: Mapping[str, str]) -> list[Finding]:
    workers = recipe.data.workers if recipe else 0
    cards = network.infiniband()
    return [
        *software.versions(software.requirements()),
        *machine.devices(here),
        *network.gpu_links(here),
        *cards,
        *network.interfaces(environment),
        *slurm(environment),
        *network.rendezvous(here, socket.gethostname(), environment),
        *machine.cores(here, workers, environment),
        *machine.shared_memory(here, workers),
        *machine.limits(bool(cards), *machine.own_limits()),
        *storage.run_folder(Path(recipe.output) / recipe.name if recipe else Path("runs")),
        *(needs.of_recipe(recipe, here) if recipe else []),
    ]


def slurm(environment: Mapping[str, str]) -> list[Finding]:
    """What Slurm says of this job."""
    job = environment.get("SLURM_JOB_ID")
    if not job:
        return [ok("Slurm", "not in a job")]
    nodes = environment.get("SLURM_JOB_NUM_NODES") or environment.get("SLURM_NNODES") or "?"
    text = f"job {job} on {nodes} node{'s' * (nodes != '1')} ({environment.get('SLURM_JOB_NODELIST', '?')})"
    if "SLURM_STEP_NUM_TASKS" not in environment:
        return [
            warning("Slurm", f"{text}, outside of srun", "start it with srun to look at every node as ranks see it")
        ]
    tasks, per_node = environment["SLURM_STEP_NUM_TASKS"], environment.get("SLURM_STEP_TASKS_PER_NODE", "?")
    cpus = environment.get("SLURM_CPUS_PER_TASK", "1")
    return [
        ok(
            "Slurm",
            f"{text}, {tasks} task{'s' * (tasks != '1')} ({per_node} per node), {cpus}"
            f" CPU{'s' * (cpus != '1')} per task",
        )
    ]
