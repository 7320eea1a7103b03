"""torch's flight recorder: the last collectives that this process has called, and which of them are not done.

With NCCL all ranks of a run that hangs stand at the same line, where they wait for their GPU. What tells them apart is
the number of the collective that each has reached, which its GPU alone knows.
"""

import json
import signal
from pathlib import Path
from typing import Any

import torch

SECONDS = 15
"""After which the process is killed if a dump does not come to its end, because of a lock or of a file system."""


def dump(folder: Path, rank: int) -> str:
    """Writes what is recorded to FOLDER/rank_RANK, in the form that torch's `torchfrtrace --prefix rank_ FOLDER` reads,
    and says which collectives are open. For a process that is about to end: never raises, and may kill the process."""
    signal.alarm(SECONDS)  # also if the interpreter itself is blocked
    try:
        traces, written = _traces()
        said = f"{open_collectives(traces)}; all in {folder / f'rank_{rank}'}, for torchfrtrace"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rank_{rank}").write_bytes(written)
        return said
    except Exception as error:  # torch has no public function for it
        return f"not written ({type(error).__name__}: {error})"
    finally:
        signal.alarm(0)


def _traces() -> tuple[dict[str, Any], bytes]:
    """NCCL's recorder on GPUs, gloo's elsewhere. Without stacks: to look them up may take a lock that another thread
    holds."""
    recorder: Any = torch._C._distributed_c10d
    if torch.distributed.is_nccl_available() and torch.cuda.is_available():
        text, written = recorder._dump_nccl_trace_json(True, False), recorder._dump_nccl_trace(True, False, False)
    else:
        text, written = recorder._dump_fr_trace_json(True, False), recorder._dump_fr_trace(True, False, False)
    return json.loads(text), written


def open_collectives(traces: dict[str, Any]) -> str:
    """The first collective of every process group that is not done, and how many this rank has called there."""
    last: dict[str, int] = {}
    first: dict[str, dict[str, Any]] = {}
    for entry in traces.get("entries", []):
        group = " ".join(entry["process_group"])
        last[group] = max(last.get(group, 0), entry["collective_seq_id"])
        if entry["state"] != "completed" and not entry["retired"]:
            first.setdefault(group, entry)
    said = []
    for group, number in last.items():
        entry = first.get(group)
        waits = f", waits in {_named(entry)}" if entry else ", all done"
        said.append(f"group {group}: {number} collectives called{waits}")
    return "; ".join(said) or "no collective recorded"


def _named(entry: dict[str, Any]) -> str:
    return f"number {entry['collective_seq_id']}, {entry['profiling_name']} of {entry['input_sizes']}, {entry['state']}"
