"""Ranks find each other at MASTER_ADDR:MASTER_PORT before there is a process group, and agree to start or to end.

torch's own rendezvous waits in C++ code, where no signal is handled, until the last rank has come. Here every rank
looks a few times a second whether it was asked to end. The first entry under DECISION counts for all: GO, by a rank
that has seen all others arrive, or END, by one that was asked to end.
"""

import contextlib
import os
import socket
import time
from datetime import timedelta
from functools import partial

from torch.distributed import Store, TCPStore

from dsmemvp.distributed.stopping import Stop, Stopped

POLL = 0.1
"""Seconds between two looks."""
LEAVE = 10.0
"""Seconds for which a rank that was asked to end, and got so far, tries to tell the others. Launchers end those that
come later."""
CONNECT, STORE = 5.0, 30.0
"""Seconds for one attempt to reach rank 0, and for its store to answer when it was reached."""
NAMED = 8
"""At most so many absent ranks are named."""
ARRIVED, DECISION, TOLD = "dsmemvp/arrived", "dsmemvp/decision", "dsmemvp/told"
GO, END = "go", "end"


def meet(rank: int, world: int, seconds: float, stop: Stop) -> tuple[Store, str]:
    """The store of all ranks, once they are there, and the address at which this rank reached rank 0. Raises Stopped on
    all ranks if one was asked to end, TimeoutError if ranks are missing after `seconds`, ConnectionAbortedError if
    rank 0 left."""
    until = time.monotonic() + seconds
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun's agent holds the store itself
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    opened = partial(TCPStore, host, port, world, timeout=timedelta(seconds=STORE), wait_for_workers=False)
    store = opened(is_master=True) if serves else None
    address = _reach(host, port, until, stop)
    try:
        store = store or opened(is_master=False)
        store.set_timeout(timedelta(seconds=seconds))
        decision = _decide(store, rank, world, until, stop)
    except RuntimeError as error:  # of the store
        raise ConnectionAbortedError(f"rank 0 left while ranks joined: {error}") from None
    if decision == END:
        with contextlib.suppress(RuntimeError):
            _tell(store, world, waits=serves)
        raise Stopped("while ranks joined")
    # a cable that is pulled must not part rank 0 from itself
    return store, "127.0.0.1" if rank == 0 else address


def _reach(host: str, port: int, until: float, stop: Stop) -> str:
    """Wait until rank 0 listens; the address that it was reached at."""
    began = time.monotonic()
    while True:
        try:
            with socket.create_connection((host, port), timeout=CONNECT) as connection:
                return connection.getpeername()[0]
        except OSError as error:
            now = time.monotonic()
            if stop.asked and now - max(stop.since, began) > LEAVE:
                raise Stopped("while ranks joined") from None
            if now > until:
                raise TimeoutError(f"rank 0 was not reached at {host}:{port}: {error}") from None
        time.sleep(POLL)


def _decide(store: Store, rank: int, world: int, until: float, stop: Stop) -> str:
    if stop.asked:  # before the others count this rank and start
        return _decided(store, END)
    store.set(f"{ARRIVED}/{rank}", "")
    arrived = store.add(ARRIVED, 1)
    while True:
        if stop.asked:
            return _decided(store, END)
        if arrived == world:
            return _decided(store, GO)
        if store.check([DECISION]):
            return store.get(DECISION).decode()
        if time.monotonic() > until:
            raise TimeoutError(f"{arrived} of {world} ranks have joined in time; missing: {_absent(store, world)}")
        time.sleep(POLL)
        arrived = store.add(ARRIVED, 0)


def _decided(store: Store, proposal: str) -> str:
    """What all ranks do: `proposal`, if this rank is the first to decide."""
    return store.compare_set(DECISION, "", proposal).decode()


def _tell(store: Store, world: int, waits: bool) -> None:
    """This rank knows that all end. The one that holds the store stays until the others know it too."""
    told, until = store.add(TOLD, 1), time.monotonic() + LEAVE
    while waits and told < world and time.monotonic() < until:
        time.sleep(POLL)
        told = store.add(TOLD, 0)


def _absent(store: Store, world: int) -> str:
    absent = [str(rank) for rank in range(world) if not store.check([f"{ARRIVED}/{rank}"])]
    return ", ".join(absent[:NAMED]) + (f" and {len(absent) - NAMED} more" if len(absent) > NAMED else "")
