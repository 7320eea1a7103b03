"""A web server for tests: a folder over HTTP on this machine, which counts requests and can be told to misbehave. S3's
clients can read from it: a folder in it is a bucket."""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Server:
    location: str
    asked: Counter[str] = field(default_factory=Counter)
    """Requests for each file name."""
    credentials: list[str] = field(default_factory=list)
    """The Authorization header of each request; empty if there was none."""
    queries: list[str] = field(default_factory=list)
    wait: float = 0.0
    """Seconds before an answer."""
    change: Callable[[str, bytes], bytes] = lambda name, content: content
    """What is sent in place of a file's content."""
    promise: int = 0
    """Bytes announced more than are sent, as where a connection breaks."""
    instead: Callable[[str, BaseHTTPRequestHandler], bool] = lambda name, request: False
    """Answers a request for a file by itself and returns True, or returns False."""
    over: threading.Event = field(default_factory=threading.Event)
    """Set when the server is shut down: an answer that takes for ever ends."""

    def url(self, user: str) -> str:
        """The location with a user and password in it."""
        return self.location.replace("://", f"://{user}@")


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            with suppress(ConnectionError):
                self.answer(unquote(self.path.partition("?")[0]).removeprefix("/"))

        def do_GET(self):
            path, _, query = self.path.partition("?")
            name = unquote(path).removeprefix("/")
            server.asked[name] += 1
            server.credentials.append(self.headers.get("Authorization", ""))
            server.queries.append(query)
            with suppress(ConnectionError):  # the other side has had enough
                self.answer(name)

        def answer(self, name):
            time.sleep(server.wait)
            if server.instead(name, self):
                return
            if not (folder / name).is_file():
                self.send_error(404)
                return
            content = server.change(name, (folder / name).read_bytes())
            if span := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                start, total = int(span[1]), len(content)
                content = content[start : int(span[2]) + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{total}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content) + server.promise))
            self.end_headers()
            if self.command != "HEAD":
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
        server.over.set()
        http.shutdown()
        thread.join()
        http.server_close()


def only(name, answer):
    """That answer for the file `name` alone."""
    return lambda asked, request: asked == name and answer(asked, request)


def status(code, **headers):
    def answer(name, request):
        request.send_response(code)
        for header, value in headers.items():
            request.send_header(header.replace("_", "-"), value)
        request.end_headers()
        return True

    return answer
