"""
Somebody who receives callbacks: a real server on a real port, which answers as it is told.
"""

from __future__ import annotations

import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    import ssl


class Received(NamedTuple):
    """One request; the names of its headers are in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """
    Listens until it is closed.

    Args:
        answers: Statuses of its first answers; those that follow are 204.
        headers: Of every answer.
        host: Where.
        port: Where; 0 picks a free one.
        tls: Speak TLS with this.

    Attributes:
        requests: All it has received so far.
    """

    def __init__(
        self,
        *answers: int,
        headers: dict[str, str] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.requests: list[Received] = []
        self._new: queue.Queue[Received] = queue.Queue()
        self._answers = list(answers)
        self._headers = headers or {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver._receive(self)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str = "/hook", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def _receive(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"]))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        received = Received(handler.path, headers, body)
        status = self._answers.pop(0) if self._answers else 204
        handler.send_response(status)
        for name, value in self._headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        self.requests.append(received)
        self._new.put(received)

    def next(self, within: float = 30.0) -> Received:
        """The next request that it receives."""
        return self._new.get(timeout=within)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
