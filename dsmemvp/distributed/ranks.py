"""Joining the other ranks, and the few numbers that ranks tell each other.

Which rank this is, and of how many, says the launcher (launchers.py).
"""

import contextlib
import json
import logging
import os
import resource
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator, set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.utils import logger as deepspeed_logger

from dsmemvp import log
from dsmemvp.distributed.gpus import check_no_gpu_is_lost
from dsmemvp.distributed.launchers import Place, find_place
from dsmemvp.distributed.rendezvous import meet
from dsmemvp.distributed.stopping import Stop, unsignalled
from dsmemvp.errors import UserError

T = TypeVar("T")
SLACK = 60.0
"""Seconds by which a collective waits longer than the heartbeat of ranks (heartbeat.py), which has more to say."""
RECORDED = "2000"
"""Collectives that torch's flight recorder remembers (fault_tolerance/flight_recorder.py)."""


class _Cpu(CPU_Accelerator):
    """DeepSpeed's CPU accelerator without the one operator that it would compile at the start: a collective through
    shared memory for tensor-parallel inference, which nothing here calls. Without a builder, DeepSpeed goes without the
    operator, and no start needs a compiler, or waits for the lock of a build."""

    def create_op_builder(self, op_name: str) -> Any:
        return None if op_name == "ShareMemCommBuilder" else super().create_op_builder(op_name)


@dataclass(frozen=True)
class Ranks:
    """Numbers and texts travel between CPUs, over gloo, so that asking the others does not wait for the GPU. A single
    rank asks nobody."""

    rank: int
    world: int
    device: torch.device
    control: Any = None
    """The process group they travel in; None for the default one."""
    first_address: str = "127.0.0.1"
    """The IP address at which this rank reached rank 0."""

    @property
    def first(self) -> bool:
        """Whether this rank is the one that writes files and lines."""
        return self.rank == 0

    def sums(self, *numbers: float) -> list[float]:
        """Each number summed over all ranks, in float64."""
        if self.world == 1:
            return [float(number) for number in numbers]
        tensor = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def any(self, own: bool) -> bool:
        """Whether it is so on some rank; all ranks get the same answer."""
        return self.sums(own)[0] > 0

    def table(self, *numbers: float) -> list[list[float]]:
        """The numbers of every rank, in float64: [rank][number]. All ranks give the same number of them."""
        if self.world == 1:
            return [[float(number) for number in numbers]]
        own = torch.tensor(numbers, dtype=torch.float64)
        rows = [torch.empty_like(own) for _ in range(self.world)]
        torch.distributed.all_gather(rows, own, group=self.control)
        return torch.stack(rows).tolist()

    def gather(self, texts: list[str]) -> list[str]:
        """The texts of all ranks, rank by rank. They travel as JSON: nothing that others send is unpickled."""
        if self.world == 1:
            return list(texts)
        own = torch.tensor(list(json.dumps(texts).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        torch.distributed.all_gather(sizes, torch.tensor([own.numel()]), group=self.control)
        longest = int(max(size.item() for size in sizes))
        padded = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
        torch.distributed.all_gather(
            padded, torch.nn.functional.pad(own, (0, longest - own.numel())), group=self.control
        )
        rows = [bytes(p[: int(s.item())].tolist()) for p, s in zip(padded, sizes, strict=True)]
        return [text for row in rows for text in json.loads(row)]

    def in_step(self, source: Iterator[T]) -> Iterator[T]:
        """`source`, item by item on all ranks; if it raises UserError or OSError on one, all raise the same, so
        that no rank is left waiting in a collective for one that has gone."""
        for item in _caught(source):
            own = _described(item) if isinstance(item, Exception) else ""
            if self.any(bool(own)):
                raise _error(next(text for text in self.gather([own]) if text))
            assert not isinstance(item, Exception)
            yield item

    def together(self, task: Callable[[], T]) -> T:
        """What `task` gives on this rank, once it has been done on all; errors as in `in_step`."""
        return next(self.in_step(task() for _ in range(1)))

    def once_per_node(self, task: Callable[[], T]) -> T:
        """What `task` gives on the first rank of this node, on all ranks of it; it travels as JSON. Nodes are told
        apart by their host names. Errors as in `in_step`."""
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        own = self.together(lambda: task() if first else None)
        if self.world == 1:
            assert own is not None
            return own
        rows = self.gather([json.dumps([socket.gethostname(), first, own])])
        here = [found for host, of_first, found in map(json.loads, rows) if of_first and host == socket.gethostname()]
        return here[0]


def join_ranks(seconds: float, stop: Stop | None = None) -> Ranks:
    """Start the process group: nccl if this process has a GPU, gloo on CPUs. A collective that waits longer than
    `seconds` (and some more) for a rank fails. Raises Stopped on all ranks if `stop` asks one of them to end before all
    have come, and what rendezvous.meet raises."""
    raise_file_limit()
    deepspeed_logger.setLevel(logging.ERROR)  # its warnings speak to authors of training loops, not to users
    if "RANK" not in os.environ:
        with unsignalled():  # a signal to all processes of a task must not end what this one asks
            place = find_place(os.environ) or Place(0, 1, 0, 1, "127.0.0.1", _free_port())
        os.environ.update(place.variables())
    if "LOCAL_SIZE" in os.environ:  # the deepspeed launcher's word for it
        os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ["LOCAL_SIZE"])
    device = own_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        _share_cores()
    if get_accelerator().device_name() == "cpu":
        set_accelerator(_Cpu())
    backend = "nccl" if device.type == "cuda" else "gloo"
    # explicit, since DeepSpeed's default has changed between versions
    rank, world, timeout = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), timedelta(seconds=seconds + SLACK)
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", RECORDED)
    store, first_address = meet(rank, world, seconds + SLACK, stop or Stop())
    given: dict[str, Any] = {"store": store, "rank": rank, "world_size": world, "timeout": timeout}
    if device.type == "cuda" and world > 1:  # as DeepSpeed does it: torch then builds later groups from this one
        given["device_id"] = device
    torch.distributed.init_process_group(backend, **given)
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
    log.configure(rank)
    control = torch.distributed.new_group(backend="gloo", timeout=timeout) if backend == "nccl" else None
    return Ranks(rank, world, device, control, first_address)


def raise_file_limit() -> None:
    """Let this process open as many files as the system allows: shards, connections of other ranks, loaders' pipes."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a container may forbid it
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def own_device() -> torch.device:
    """The GPU of this process's number on its node, if there are any. Raises UserError if there are, and torch cannot
    use them."""
    check_no_gpu_is_lost(os.environ)
    if get_accelerator().device_name() == "cuda":
        # on Hopper from torch 2.11 on it is the first choice, and plans anew for every length: half a second each
        torch.backends.cuda.enable_cudnn_sdp(False)
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def _caught(source: Iterator[T]) -> Iterator[T | UserError | OSError]:
    """The items of `source`, the last one being the error it raised, if it did."""
    try:
        yield from source
    except (UserError, OSError) as error:
        yield error


def _described(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return json.dumps([isinstance(error, OSError), number, str(error)])


def _error(text: str) -> UserError | OSError:
    is_system, number, message = json.loads(text)
    if not is_system:
        return UserError(message)
    error = OSError(message)
    error.errno = number  # given to the constructor, it would stand in the message a second time
    return error


def leave_ranks() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _share_cores() -> None:
    """CPU ranks on one node share its cores, unless the launcher has set OMP_NUM_THREADS."""
    on_node = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // on_node))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
