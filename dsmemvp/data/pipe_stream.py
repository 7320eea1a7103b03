"""What a shell command writes, in chunks. It is killed, with all that it has started, if nothing comes any more."""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import suppress

from dsmemvp.data.transfer_error import TransferError
from dsmemvp.errors import UserError

CHUNK = 1 << 20
SAID = 4096
"""Bytes of its last messages that are kept."""


def pipe_chunks(command: str, timeout: float) -> Generator[bytes, None, None]:
    """What `command` writes to stdout. `timeout` in seconds without a byte, or between its last one and its end. Raises
    TransferError with the last line that it has written to stderr."""
    process = subprocess.Popen(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,  # a program that asks for a password must not wait for it
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    )
    assert process.stdout and process.stderr
    out, err = process.stdout.fileno(), process.stderr.fileno()
    said = b""
    try:
        with selectors.DefaultSelector() as ready:
            ready.register(out, selectors.EVENT_READ)
            ready.register(err, selectors.EVENT_READ)
            until = time.monotonic() + timeout
            while out in ready.get_map():
                found = [key.fd for key, _ in ready.select(max(0.0, until - time.monotonic()))]
                if out in found:
                    if chunk := os.read(out, CHUNK):
                        yield chunk
                        until = time.monotonic() + timeout
                    else:
                        ready.unregister(out)
                elif time.monotonic() > until:
                    raise TransferError(f"no byte for {timeout:g} s{_last_line(said)}", TimeoutError)
                if err in found:
                    text = os.read(err, CHUNK)
                    said = (said + text)[-SAID:]
                    if not text:
                        ready.unregister(err)
        code = process.wait(timeout)
        if code:
            os.set_blocking(err, False)  # what it has left behind may hold the other end open
            with suppress(BlockingIOError):
                while text := os.read(err, CHUNK):
                    said = (said + text)[-SAID:]
            raise TransferError(f"exit {code}{_last_line(said)}", UserError)
    except subprocess.TimeoutExpired:
        raise TransferError(f"the command does not end{_last_line(said)}", TimeoutError) from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()
        process.stderr.close()


def _last_line(said: bytes) -> str:
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    text = "".join(sign for sign in lines[-1] if sign.isprintable()).strip() if lines else ""
    return f": {text[-300:]}" if text else ""
