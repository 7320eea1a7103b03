"""A file that one of fsspec's backends reads (s3://, gs://, hf:// and others), in chunks, every wait bounded.

Credentials, endpoints and proxies are found as the backend finds them: ~/.aws, gcloud's and the hub's logins, their
environment variables, and those of fsspec, such as FSSPEC_S3_ANON=true.
"""

import functools
import logging
import os
import queue
import threading
from collections.abc import Generator
from typing import Any

import fsspec

from dsmemvp.data.transfer_error import TransferError
from dsmemvp.errors import UserError

CHUNK = 8 << 20
"""Bytes of a request. They must come within the timeout, which is looked at between requests only."""
AHEAD = 2
"""Requests whose bytes wait to be taken."""
OF_USER = (400, 401, 403, 404, 410)
"""HTTP statuses that another attempt will not change."""
EXTRA = {"s3": "s3fs", "gs": "gcsfs"}
"""Schemes whose packages the extra `remote` brings."""
for _package in EXTRA.values():  # which print tracebacks of what they then raise, unless a program logs
    logging.getLogger(_package).addHandler(logging.NullHandler())
# gcsfs asks for the kind of a bucket over gRPC, which proxies of clusters stop: a minute for each file
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def check_scheme(scheme: str) -> str:
    """Why fsspec cannot open what begins with `scheme`://; empty if it can."""
    if scheme in ("file", "local"):
        return f"a folder of this machine is named without {scheme}://"
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        if scheme in EXTRA:
            return f"{scheme}:// needs the package {EXTRA[scheme]}; pip install 'dsmemvp[remote]'"
        return f"{scheme}:// needs a package that is not installed ({_line(error)})"
    except ValueError:
        return f"{scheme}:// is no protocol that fsspec knows"
    return ""


def fsspec_chunks(url: str, timeout: float) -> Generator[bytes, None, None]:
    """The content of `url`. `timeout` in seconds holds for opening and for every chunk. Raises TransferError."""
    # backends bound their waits in different ways, if at all: a thread waits, and is left alone if it takes too long
    chunks: queue.Queue[bytes | Exception] = queue.Queue(AHEAD)
    over = threading.Event()
    threading.Thread(target=_read, args=(url, chunks, over), daemon=True, name="fsspec").start()
    try:
        while True:
            try:
                found = chunks.get(timeout=timeout)
            except queue.Empty:
                raise TransferError(f"no byte for {timeout:g} s", TimeoutError) from None
            if isinstance(found, Exception):
                raise _failure(found, timeout) from None
            if not found:
                return
            yield found
    finally:
        over.set()


def _read(url: str, chunks: queue.Queue[bytes | Exception], over: threading.Event) -> None:
    def give(what: bytes | Exception) -> None:
        while not over.is_set():
            try:
                return chunks.put(what, timeout=0.1)
            except queue.Full:
                continue

    try:
        with _filesystem(url.partition("://")[0], os.getpid()).open(
            url, "rb", block_size=CHUNK, cache_type="none"
        ) as file:
            while not over.is_set():
                chunk = file.read(CHUNK)
                give(chunk)
                if not chunk:
                    break
    except Exception as error:  # each backend has exceptions of its own; only its code runs here
        _filesystem.cache_clear()  # the next attempt starts with nothing that this one has found
        give(error)


@functools.cache
def _filesystem(scheme: str, process: int) -> Any:
    """One for a process: to log in takes some of them half a second. Without a memory of what lies where."""
    return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)


def _failure(error: Exception, timeout: float) -> TransferError:
    if isinstance(error, FileNotFoundError):
        return TransferError("no such file, or no rights to see it", UserError, again=False)
    if isinstance(error, TimeoutError):
        return TransferError(f"no answer within {timeout:g} s", TimeoutError)
    name = type(error).__name__
    text = f"{_line(error)} ({name})"
    if name == "NoCredentialsError":  # botocore's
        text += "; for a public bucket set FSSPEC_S3_ANON=true"
    forbidden = isinstance(error, PermissionError) or _line(error).startswith("Forbidden")  # gcsfs's OSError
    setting = isinstance(error, (TypeError, ValueError))  # or a name, that the backend does not take
    if forbidden or setting or name.endswith("CredentialsError") or _status(error) in OF_USER:
        return TransferError(text, UserError, again=False)
    return TransferError(text)


def _status(error: BaseException) -> int:
    """The HTTP status that a backend's error, or the one it follows from, has with it; or 0."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:  # the hub; gcsfs; aiohttp
        names = (getattr(response, "status_code", 0), getattr(error, "code", 0), getattr(error, "status", 0))
        found = next(filter(None, names), 0)
    if not found and error.__cause__:
        return _status(error.__cause__)
    return int(found) if str(found).isdecimal() else 0


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
