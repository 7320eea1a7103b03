"""The folder of a run: whether it takes files, how fast, and how much more."""

import os
import shutil
import tempfile
import time
from pathlib import Path

from dsmemvp.atomic_files import flush
from dsmemvp.doctor.finding import Finding, fail, gib, ok, warning

PROBE = 64 * 2**20
"""Bytes written; about a checkpoint of MemVP on LLaMA-13B."""
LITTLE = 2 * 2**30
SLOW_BYTES, SLOW_FSYNC = 50e6, 2.0
"""Bytes per second and seconds that are worth a warning: training waits for neither, the end of a save does."""


def run_folder(folder: Path) -> list[Finding]:
    """Writes a file there, flushes and renames it as checkpoints are, and removes it. A folder that does not exist yet
    is not made: the nearest above it is taken."""
    nearest = folder.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    where = str(folder) if folder.exists() else f"{folder} (not there yet; {nearest})"
    try:
        probe = Path(tempfile.mkdtemp(prefix=".doctor-", dir=nearest))
    except OSError as error:
        return [fail("run folder", f"{where}: {error.strerror}", "choose another one with output=")]
    try:
        written, flushed = _write(probe)
        free = shutil.disk_usage(probe).free
    except OSError as error:
        todo = "make room, or choose another one with output="
        return [fail("run folder", f"{where}: {gib(PROBE)} could not be written and renamed: {error.strerror}", todo)]
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    text = (
        f"{where}: {gib(free)} free, {PROBE / max(written, 1e-6) / 1e6:.0f} MB/s, fsync of a small file {flushed:.3f} s"
    )
    if free < LITTLE:
        return [warning("run folder", text, "checkpoints of tens of MB and predictions come there")]
    if PROBE / max(written, 1e-6) < SLOW_BYTES or flushed > SLOW_FSYNC:
        return [warning("run folder", text, "saving will take long; choose another file system with output=")]
    return [ok("run folder", text)]


def _write(folder: Path) -> tuple[float, float]:
    """(seconds for PROBE bytes, onto the disk; seconds to flush a small file)."""
    block = os.urandom(2**20)
    start = time.monotonic()
    with (folder / "partial").open("wb") as file:
        for _ in range(PROBE // len(block)):
            file.write(block)
    flush(folder / "partial")
    written = time.monotonic() - start
    (folder / "partial").rename(folder / "whole")
    flush(folder)
    (folder / "small").write_bytes(b"x")
    start = time.monotonic()
    flush(folder / "small")
    return written, time.monotonic() - start
