"""Where shards lie elsewhere: a URL that file names are appended to, http(s) or of a protocol that fsspec knows; or
`pipe:` and a command in which {name} stands for the file name. A location may hold passwords and signatures: only what
`masked` returns may be shown."""

import hashlib
import re
import shlex
import string
from urllib.parse import quote, urlsplit, urlunsplit

from dsmemvp.data.fsspec_stream import check_scheme
from dsmemvp.errors import UserError

_URL = re.compile(r"""([a-zA-Z][\w+.-]*://)([^\s/?#"'<>]*)([^\s?#"'<>]*)([?#][^\s"'<>]*)?""")
_HOST = re.compile(r"(\[[\da-fA-F:.%]*\]|[^:@\[\]]*)(:\d*)?")
_NAME = r"[\w-]*(?:secret|token|passw|pwd|credential|signature|api[_-]?key|access[_-]?key)[\w-]*"
_SECRET = re.compile(
    rf"""(?i)((?:authorization\s*:\s*(?:\w+\s+)?)|(?:\b{_NAME}\s*[=:]\s*)|(?:--?{_NAME}\s+))("[^"]*"|'[^']*'|[^\s"']+)"""
)


def is_remote(location: str) -> bool:
    return "://" in location or location.startswith("pipe:")


def is_http(location: str) -> bool:
    return location.lower().startswith(("http://", "https://"))


def masked(text: str) -> str:
    """`text` without the passwords and queries of the URLs in it, and without other values that are called secret:
    https://user:secret@host/x?signature=... becomes https://***@host/x?***."""
    return _SECRET.sub(r"\1***", _URL.sub(_masked_url, text))


def _masked_url(found: re.Match[str]) -> str:
    scheme, authority, path, query = found.groups()
    _, at, host = authority.rpartition("@")
    if not _HOST.fullmatch(host):  # a password with a / or ? in it: where it ends is not known
        return f"{scheme}***"
    return f"{scheme}{'***@' if at else ''}{host}{path}{f'{query[0]}***' if query else ''}"


def check_location(location: str, pipes: bool) -> None:
    """Raises UserError if the location cannot be opened, or is a `pipe:` and `pipes` does not allow them."""
    if location.startswith("pipe:"):
        if not pipes:
            raise UserError(f"{masked(location)}: `pipe:` runs a shell command; allow it with data.allow_pipe=true")
        if "{name}" not in location:
            raise UserError(f"{masked(location)}: write {{name}} where the command takes the file name")
        return
    scheme = location.partition("://")[0]
    if not is_http(location) and (why := check_scheme(scheme)):
        raise UserError(
            f'{masked(location)}: {why}; or name a command, such as "pipe:aws s3 cp s3://bucket/folder/{{name}} -"'
        )
    try:
        parts = urlsplit(location)
        known = bool(parts.hostname) and parts.port != 0  # a port that is no number is a ValueError
    except ValueError:
        known = False
    if not known:
        raise UserError(f"{masked(location)} is not a URL; write special characters of a password as %XX")


def file_url(location: str, name: str) -> str:
    """The URL of a file at a location; one of http(s) keeps the location's query, which may be a signature, and is
    escaped."""
    if not is_http(location):
        return f"{location.rstrip('/')}/{name}"
    parts = urlsplit(quote(location, safe=string.punctuation))
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}", fragment=""))


def file_command(location: str, name: str) -> str:
    """The shell command that writes a file of a `pipe:` location to stdout. Raises UserError."""
    if shlex.quote(name) != name or name.startswith("-"):
        # quotes around {name} in the command would undo ours
        raise UserError(f"{masked(location)}: {name!r} must not stand in a shell command; rename the file")
    return location.removeprefix("pipe:").replace("{name}", name)


def location_id(location: str) -> str:
    """A name for the location's folders in the cache. Credentials and signatures, which change, are no part of it."""
    if not location.startswith("pipe:"):
        parts = urlsplit(location)
        location = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    return hashlib.sha256(location.encode()).hexdigest()[:16]
