"""A file over http(s), in chunks: every wait is bounded, redirects never leave https, and credentials stay with the
server that they are for."""

import base64
import http.client
import netrc
import socket
import ssl
import string
import time
from collections.abc import Generator
from contextlib import closing
from email.utils import parsedate_to_datetime
from urllib.error import URLError
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request

from dsmemvp import __version__
from dsmemvp.data.transfer_error import TransferError
from dsmemvp.errors import UserError

CHUNK = 1 << 20
REDIRECTS = 10
MOVED = (301, 302, 303, 307, 308)
PASSING = (408, 425, 429)
"""Beside all of 500 and above."""
PORTS = {"http": 80, "https": 443}


def http_chunks(url: str, timeout: float) -> Generator[bytes, None, None]:
    """The content of `url`, whose user and password are sent as a header; without them those that ~/.netrc has for its
    host. `timeout` in seconds holds for connecting and for every read. Raises TransferError."""
    with closing(_opened(url, timeout)) as response:
        while chunk := _read(response, timeout):
            yield chunk
        if response.length:
            raise TransferError(f"the connection ended {response.length} bytes early")


def redirected(url: str, to: str) -> str:
    """Where a redirect of `url` leads. Raises TransferError if it must not be followed."""
    scheme = urlsplit(url).scheme
    try:
        parts = urlsplit(urljoin(url, quote(to, safe=string.punctuation, encoding="iso-8859-1")))
        known = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise TransferError("a redirect to what is not a URL", UserError, again=False) from None
    if not known or parts.scheme not in PORTS or (scheme, parts.scheme) == ("https", "http"):
        raise TransferError(f"a redirect from {scheme} to {parts.scheme} is not followed", UserError, again=False)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))


def keeps_credentials(url: str, to: str) -> bool:
    """Whether a redirect stays on the server that the credentials of `url` are for, encrypted or not."""
    before, after = urlsplit(url), urlsplit(to)
    ports = _port(before), _port(after)
    return before.hostname == after.hostname and (ports[0] == ports[1] or ports == (80, 443))


def _port(parts: SplitResult) -> int:
    return parts.port or PORTS[parts.scheme]


def _opened(url: str, timeout: float) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    own = _basic(unquote(parts.username or ""), unquote(parts.password or "")) if "@" in parts.netloc else ""
    url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    for _ in range(REDIRECTS + 1):
        response = _asked(url, own or _from_netrc(url), timeout)
        to = response.headers.get("Location", "") if response.status in MOVED else ""
        if response.status == 200:
            return response
        response.close()  # unread: the content of an answer like this has no bound
        if not to:
            raise _refused(response)
        target = redirected(url, to)
        own = own if keeps_credentials(url, target) else ""
        url = target
    raise TransferError(f"more than {REDIRECTS} redirects", UserError, again=False)


def _asked(url: str, authorization: str, timeout: float) -> http.client.HTTPResponse:
    opener = OpenerDirector()  # without handlers of redirects, errors, files and FTP
    for handler in (ProxyHandler(), HTTPHandler(), HTTPSHandler()):
        opener.add_handler(handler)
    headers = {"User-Agent": f"dsmemvp/{__version__}"} | ({"Authorization": authorization} if authorization else {})
    try:
        return opener.open(Request(url, headers=headers), timeout=timeout)
    except (OSError, http.client.HTTPException) as error:
        raise _failure(error, timeout) from None


def _read(response: http.client.HTTPResponse, timeout: float) -> bytes:
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _failure(error, timeout) from None


def _failure(error: Exception, timeout: float) -> TransferError:
    if isinstance(error, URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return TransferError(f"no byte for {timeout:g} s", TimeoutError)
    if isinstance(error, ssl.SSLCertVerificationError):
        return TransferError(f"the server's certificate: {error.verify_message}", UserError, again=False)
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME:
        return TransferError("no host of this name is known", UserError)
    return TransferError(" ".join(str(error).split()) or type(error).__name__)


def _refused(response: http.client.HTTPResponse) -> TransferError:
    status = response.status
    text = f"HTTP {status} {http.client.responses.get(status, '')}".strip()
    if status >= 500 or status in PASSING:
        return TransferError(text, wait=_seconds(response.headers.get("Retry-After", "")))
    if status in (401, 403):
        text += "; user and password come from the URL, or from ~/.netrc if only its owner may read it"
    return TransferError(text, UserError, again=False)


def _seconds(retry_after: str) -> float:
    """Of a header that gives seconds or a date; 0 if it is neither."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _from_netrc(url: str) -> str:
    try:
        known = netrc.netrc().hosts.get(urlsplit(url).hostname or "")
    except (FileNotFoundError, netrc.NetrcParseError):  # also raised for one that others may read
        return ""
    return _basic(known[0], known[2] or "") if known else ""
