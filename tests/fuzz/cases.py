"""One damaged file, read in a process of its own: what came of it, in which time and memory."""

import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dsmemvp.distributed.stopping import exit_code

SECONDS, MEMORY = 20, 1 << 30
"""What a reader may take, whatever is in the file."""
GUARD = 6 << 30
"""Of address space beyond what there was: for the machine's sake."""


@dataclass(frozen=True)
class Reader:
    name: str
    example: Path
    """A folder that is read without a complaint."""
    files: tuple[str, ...]
    """Of it, those that are damaged."""
    read: Callable[[Path], str]
    """Reads a copy of the folder, through a door of the package, and says what it found there."""
    checked: bool
    """Whether checksums cover all that `read` says: then it is the same from a damaged file, or none."""


@dataclass(frozen=True)
class Outcome:
    accepted: bool
    said: str
    """What was found or, refused, the error."""
    wrong: str
    """How the rule is broken; empty where it is kept."""


def tried(
    reader: Reader, files: dict[str, bytes], wanted: str | None, spoil: Callable[[Path], object] = bool
) -> Outcome:
    """`files` are written over the example's, and `spoil` may do worse to the folder. `wanted`: what is found in the
    example."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "example"
        shutil.copytree(reader.example, folder)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        spoil(folder)
        return _judged(*_in_child(lambda: reader.read(folder), Path(made)), wanted if reader.checked else None)


def _judged(status: int, said: str, noise: str, seconds: float, memory: int, wanted: str | None) -> Outcome:
    code = os.waitstatus_to_exitcode(status)
    wrong = ""
    # transformers warns of values in a config.json that it takes all the same
    noise = "".join(line for line in noise.splitlines(keepends=True) if line.strip() and "[transformers]" not in line)
    if code not in (0, 1):
        wrong = f"ended with {code}"
    elif seconds > SECONDS:
        wrong = f"took {seconds:.0f} s"
    elif memory > MEMORY:
        wrong = f"took {memory >> 20} MiB"
    elif noise:
        wrong = f"wrote to stderr: {noise[:300]}"
    elif code == 0 and wanted is not None and said != wanted:
        wrong = "was taken for whole, and is not"
    return Outcome(code == 0, said, wrong)


def _in_child(read: Callable[[], str], folder: Path) -> tuple[int, str, str, float, int]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    child = os.fork()
    if not child:
        _child(read, folder)
    _, status, used = os.wait4(child, 0)
    said = (folder / "said").read_text(errors="replace") if (folder / "said").exists() else ""
    noise = (folder / "noise").read_text(errors="replace")
    return status, said, noise, time.monotonic() - began, (used.ru_maxrss - before) * 1024


def _child(read: Callable[[], str], folder: Path) -> None:
    for number in (1, 2):
        os.dup2(os.open(folder / "noise", os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS + 5)
    most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + GUARD
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    code = 70
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text, code = read(), 0
    except BaseException as error:
        code, text = exit_code(error), f"{type(error).__name__}: {error}"
        if code != 1:
            text = "".join(traceback.format_exception(error))[-3000:]
    try:
        (folder / "said").write_text(text, errors="backslashreplace")
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
