"""A web server for tests: a folder over HTTP on this machine, which counts requests and can be told to misbehave."""

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest


@dataclass
class Server:
    location: str
    asked: Counter[str] = field(default_factory=Counter)
    """Requests for each file name."""
    wait: float = 0.0
    """Seconds before an answer."""
    change: Callable[[str, bytes], bytes] = lambda name, content: content
    """What is sent in place of a file's content."""
    promise: int = 0
    """Bytes announced more than are sent, as where a connection breaks."""


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = unquote(self.path).removeprefix("/")
            server.asked[name] += 1
            time.sleep(server.wait)
            if not (folder / name).is_file():
                self.send_error(404)
                return
            content = server.change(name, (folder / name).read_bytes())
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) + server.promise))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def need_curl() -> None:
    """webdataset opens http with curl; CI has it."""
    if shutil.which("curl") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("curl is not installed")
