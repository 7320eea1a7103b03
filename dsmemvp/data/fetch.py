"""One file from a location: the only place where attempts are repeated, and where size and speed are bounded."""

import hashlib
import random
import time
from collections.abc import Generator
from contextlib import closing
from typing import IO

from dsmemvp.data.fsspec_stream import fsspec_chunks
from dsmemvp.data.http_stream import http_chunks
from dsmemvp.data.location import file_command, file_url, is_http, masked
from dsmemvp.data.pipe_stream import pipe_chunks
from dsmemvp.data.transfer_error import TransferError
from dsmemvp.errors import UserError

ATTEMPTS = 5
BACK_OFF = 1.0
"""Seconds before the second attempt, doubled with each further one."""
LONGEST = 60.0
"""Seconds between two attempts, whatever the server asks for."""
SLOWEST = 1000
"""Bytes per second, averaged over a timeout, below which a transfer is taken for hanging."""


def fetch(location: str, name: str, into: IO[bytes], most: int, sha256: str, timeout: float) -> None:
    """Write the file `name` at `location` into an open file, at most `most` bytes. `sha256` may be empty if it is not
    known. `timeout` in seconds without a byte. Raises UserError if it cannot be had, TimeoutError or ConnectionError
    if that may pass, and OSError of the local disk."""
    wait = BACK_OFF
    for attempt in range(1, ATTEMPTS + 1):
        into.seek(0)
        into.truncate()
        try:
            digest = _copy(_chunks(location, name, timeout), into, most, timeout)
            if sha256 and digest != sha256:
                raise TransferError("its checksum is not the manifest's", UserError)
            return
        except TransferError as error:
            failed = error
        if not failed.again:
            break
        if attempt < ATTEMPTS:
            # at random, as many ranks have met the same error at the same time
            time.sleep(min(LONGEST, max(failed.wait, wait * random.uniform(0.5, 1.5))))
            wait *= 2
    count = f"; {attempt} attempts" if attempt > 1 else ""
    raise failed.kind(f"{masked(location)}: {name} cannot be fetched ({masked(str(failed))}{count})")


def _chunks(location: str, name: str, timeout: float) -> Generator[bytes, None, None]:
    if location.startswith("pipe:"):
        return pipe_chunks(file_command(location, name), timeout)
    chunks = http_chunks if is_http(location) else fsspec_chunks
    return chunks(file_url(location, name), timeout)


def _copy(chunks: Generator[bytes, None, None], into: IO[bytes], most: int, timeout: float) -> str:
    """The SHA-256 of what was written."""
    digest, size = hashlib.sha256(), 0
    waited, came = 0.0, 0
    """Seconds since the speed was last looked at, and bytes in them."""
    with closing(chunks):
        while True:
            began = time.monotonic()
            chunk = next(chunks, b"")
            if not chunk:
                break
            size += len(chunk)
            if size > most:
                raise TransferError(f"more than {most} bytes", UserError)
            waited, came = waited + time.monotonic() - began if came else 0.0, came + len(chunk)
            if waited > timeout:
                if came < SLOWEST * timeout:
                    raise TransferError(f"only {came} bytes in {waited:.0f} s", TimeoutError)
                waited, came = 0.0, 0
            digest.update(chunk)
            into.write(chunk)
    into.flush()
    return digest.hexdigest()
