"""A file server on localhost that answers each request as a script says."""

import contextlib
import hashlib
import random
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mmnet.config.profile import SourceConfig

CONTENT = random.Random(0).randbytes(5000)
OTHER = CONTENT[::-1]
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Request(BaseHTTPRequestHandler):
    """Takes the next answer of its path's script, and repeats the last."""

    protocol_version = "HTTP/1.1"
    server: "Mirror"

    def do_GET(self) -> None:
        requested = self.headers.get("Range")
        self.start = int(requested.removeprefix("bytes=").removesuffix("-")) if requested else 0
        assert self.headers["Accept-Encoding"] == "identity"
        self.server.requests.append((self.path, self.start))
        script = self.server.scripts[self.path]
        answer = script.pop(0) if len(script) > 1 else script[0]
        with contextlib.suppress(ConnectionError):  # the client hung up
            answer(self)

    def head(self, status: int, **headers: Any) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


Answer = Callable[[Request], None]


class Mirror(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.scripts: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, int]] = []

    def serves(self, *script: Answer, at: str = "/a.zip") -> str:
        self.scripts[at] = list(script)
        return f"http://127.0.0.1:{self.server_port}{at}"

    def starts(self, path: str = "/a.zip") -> list[int]:
        """Where the requests for a path began."""
        return [start for requested, start in self.requests if requested == path]


def part_of(content: bytes, stop: int | None = None) -> Answer:
    """Serve from where the request says; hang up at `stop`."""

    def answer(request: Request) -> None:
        body, size = content[request.start :], len(content)
        if request.start >= size:
            request.head(416, Content_Length=0, Content_Range=f"bytes */{size}")
            return
        if request.start:
            extent = f"bytes {request.start}-{size - 1}/{size}"
            request.head(206, Content_Length=len(body), Content_Range=extent)
        else:
            request.head(200, Content_Length=len(body))
        request.wfile.write(content[request.start : stop])
        request.close_connection = stop is not None

    return answer


def stalling(stop: int) -> Answer:
    def answer(request: Request) -> None:
        part_of(CONTENT, stop)(request)
        request.connection.recv(1)  # until the other side hangs up

    return answer


def ignoring_range(content: bytes = CONTENT, stop: int | None = None) -> Answer:
    def answer(request: Request) -> None:
        request.start = 0
        part_of(content, stop)(request)

    return answer


def claiming(extent: str) -> Answer:
    """Serve something else than was requested, as `Content-Range` says."""

    def answer(request: Request) -> None:
        request.head(206, Content_Length=1000, Content_Range=extent)
        request.wfile.write(OTHER[:1000])

    return answer


def without_length(content: bytes) -> Answer:
    def answer(request: Request) -> None:
        request.head(200, Connection="close")
        request.wfile.write(content)

    return answer


def endless(request: Request) -> None:
    request.head(200, Transfer_Encoding="chunked")
    while True:
        request.wfile.write(b"%x\r\n%b\r\n" % (len(CONTENT), CONTENT))


def status(code: int, **headers: Any) -> Answer:
    return lambda request: request.head(code, Content_Length=0, **headers)


whole = part_of(CONTENT)


def pinned(*urls: str) -> SourceConfig:
    return SourceConfig(urls=list(urls), bytes=len(CONTENT), sha256=SHA256)
