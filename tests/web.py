"""A web server on this machine for tests, which does what real ones do to downloads: breaks off, redirects, refuses."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

_RANGE = re.compile(r"bytes=(\d+)-(\d*)$")


@dataclass(slots=True)
class Request:
    """What was asked.

    `headers` have names in small letters.
    """

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Answer:
    """What is answered; with `break_after`, only so many bytes of the body, and then the connection is cut."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    break_after: int | None = None
    reset: bool = False


Handler = Callable[[Request], Answer]


@dataclass(slots=True)
class Web:
    """A running server.

    Attributes:
        url: ``http://127.0.0.1:PORT``.
        requests: all that came.
    """

    url: str
    requests: list[Request] = field(default_factory=list)

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc


@contextmanager
def serve(handler: Handler) -> Iterator[Web]:
    """Answer with `handler` while the context lasts."""
    web = Web("")

    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            parts = urlsplit(self.path)
            body = self._body()
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, parts.path, parse_qs(parts.query), headers, body)
            web.requests.append(request)
            answer = handler(request)
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(answer.body[: answer.break_after])
            if answer.break_after is not None:
                self._cut(answer.reset)

        def _body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                body = b""
                while size := int(self.rfile.readline().partition(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _cut(self, reset: bool) -> None:
            import socket
            import struct

            self.wfile.flush()
            self.close_connection = True
            if reset:  # the other side sees ECONNRESET, not an end
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                self.connection.shutdown(socket.SHUT_RDWR)
            self.connection.close()

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.daemon_threads = True
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def file_answer(request: Request, data: bytes, *, etag: str = "", headers: Mapping[str, str] | None = None) -> Answer:
    """A file as storage serves it: ranges, If-Range, and 416 past the end."""
    tag = etag or f'"{hashlib.md5(data).hexdigest()}"'
    told = {"ETag": tag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **(headers or {})}
    found = _RANGE.match(request.headers.get("range", ""))
    if not found or request.headers.get("if-range", tag) != tag:
        return Answer(200, data, told)
    start, stop = int(found[1]), min(int(found[2]) + 1 if found[2] else len(data), len(data))
    if start >= len(data):
        return Answer(416, b"", {**told, "Content-Range": f"bytes */{len(data)}"})
    return Answer(206, data[start:stop], {**told, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})
