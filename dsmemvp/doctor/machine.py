"""This node: devices, cores, shared memory, limits."""

import os
import resource
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch

from dsmemvp.counting import counted
from dsmemvp.distributed.gpus import TODO, lost_gpus
from dsmemvp.doctor.finding import Finding, Here, fail, gib, ok, warning

BUFFER = 66 * 2**20
"""Shared memory of DeepSpeed's collective for CPUs, per rank."""
PER_WORKER = 64 * 2**20
"""What the batches on their way from one loader worker may take; generous."""


def devices(here: Here) -> list[Finding]:
    if not here.on_gpus:
        memory = psutil.virtual_memory()
        text = (
            f"none; {counted(here.local_world, 'CPU rank')}, {gib(memory.available)} of {gib(memory.total)} memory free"
        )
        if problem := lost_gpus(os.environ):
            return [fail("GPUs", problem, TODO)]
        return [ok("GPUs", text)]
    memories = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        memories.append((torch.cuda.get_device_name(number), free, total))
    driver = _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]) or "unknown"
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    about = f"driver {driver}, CUDA {torch.version.cuda}, NCCL {nccl}"
    return [ok("CUDA", about), *gpus(memories, here.local_world)]


def gpus(memories: list[tuple[str, int, int]], local_world: int) -> list[Finding]:
    """`memories`: name, free and total bytes of every GPU that this process sees."""
    names = ", ".join(sorted({name for name, _, _ in memories}))
    text = f"{len(memories)} x {names}, {gib(min(total for _, _, total in memories))} each"
    if local_world > len(memories):
        what = f"{text}, but {counted(local_world, 'rank')} on this node"
        todo = "start one rank per GPU, each seeing all of them: --gpus-per-node, not --gpus-per-task or --gpu-bind"
        return [fail("GPUs", what, todo)]
    used = [str(n) for n, (_, free, total) in enumerate(memories) if free < 0.9 * total]
    findings = [ok("GPUs", text)]
    if used:
        findings += [warning("GPU memory", f"GPU {', '.join(used)}: over a tenth is taken", "look for other processes")]
    if 1 < local_world < len(memories):
        idle = len(memories) - local_world
        findings += [warning("GPUs", f"{idle} of them have no rank", "set --ntasks-per-node to their number")]
    return findings


def cores(here: Here, workers: int, environment: Mapping[str, str]) -> list[Finding]:
    """`workers`: loader processes per rank."""
    own = len(os.sched_getaffinity(0))
    asked = int(environment.get("SLURM_CPUS_PER_TASK") or 0)
    # srun gives every task its own cores; other launchers leave all of them to all ranks
    share = own if "SLURM_STEP_NUM_TASKS" in environment else own // here.local_world
    text = f"{own} of the node's {os.cpu_count()} for this process"
    if asked > own:
        todo = "give srun itself --cpus-per-task=$SLURM_CPUS_PER_TASK"
        return [warning("CPU cores", f"{text}, the job asked for {asked} per task", todo)]
    if share < 1 + workers:
        todo = f"{1 + workers} per rank are wanted: for itself and data.workers={workers}"
        return [warning("CPU cores", f"{text} and {counted(here.local_world, 'rank')}", todo)]
    return [ok("CPU cores", text)]


def shared_memory(here: Here, workers: int, folder: Path = Path("/dev/shm")) -> list[Finding]:
    try:
        stat = os.statvfs(folder)
    except OSError as error:
        return [fail("shared memory", f"{folder}: {error.strerror}", "mount a tmpfs there")]
    free, total = stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize
    needed = 0 if here.on_gpus else here.local_world * BUFFER
    wanted = needed + here.local_world * workers * PER_WORKER
    text, todo = f"{gib(free)} of {gib(total)} free in {folder}", "remove what is left there, or enlarge it"
    if free < needed:
        return [
            fail("shared memory", f"{text}, {counted(here.local_world, 'CPU rank')}, which want {gib(needed)}", todo)
        ]
    if free < wanted:
        return [warning("shared memory", f"{text}, ranks and loaders may need {gib(wanted)}", todo)]
    return [ok("shared memory", text)]


def limits(infiniband: bool, memlock: float, files: float) -> list[Finding]:
    """Bytes of locked memory, and open files, as in `own_limits`."""
    locked = "unlimited" if memlock == float("inf") else gib(memlock)
    text = f"locked memory {locked}, open files {files:.0f}"
    findings = []
    if infiniband and memlock != float("inf"):
        todo = "InfiniBand registers memory: unlimited in limits.conf, and under Slurm in slurmd's unit (LimitMEMLOCK)"
        findings.append(warning("limits", f"locked memory {locked}", todo))
    if files < 4096:
        findings.append(warning("limits", f"open files {files:.0f}", "ulimit -Hn 65536; loaders hold many shards open"))
    return findings or [ok("limits", text)]


def own_limits() -> tuple[float, float]:
    """(soft limit of bytes of locked memory, hard limit of open files, which ranks raise the soft one to)."""
    found = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    memlock, files = (float("inf") if limit == resource.RLIM_INFINITY else float(limit) for limit in found)
    return memlock, files


def _first_line(command: list[str]) -> str:
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return out.strip().partition("\n")[0]
