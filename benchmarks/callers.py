"""
Callers of a gate on kept-alive connections, where wrk cannot say what is wanted.

What is measured here is a server, so a caller does as little as it can: it knows the few answers
that the benchmarks get, each with its length, and nothing else of HTTP.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import urlsplit

from processes import BenchmarkError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Answer", "Caller", "metric", "push_lines", "request_bytes", "wait_for_metric"]

PATIENCE = 120
LENGTH = b"\r\nContent-Length: "
LINES = 1000
"""Of one push, where only the number of jobs matters."""


class Answer(NamedTuple):
    """
    What came back.

    Attributes:
        status: The status code.
        head: The status line and all fields, as sent.
        body: The body.
    """

    status: int
    head: bytes
    body: bytes

    def field(self, name: bytes) -> bytes:
        """
        Return the value of a header field, empty if it is not there.
        """
        begin = self.head.find(b"\r\n" + name + b": ")
        if begin < 0:
            return b""
        begin += len(name) + 4
        return self.head[begin : self.head.index(b"\r\n", begin)]


def request_bytes(method: str, target: str, body: bytes = b"") -> bytes:
    """
    Write a request down.
    """
    length = f"Content-Length: {len(body)}\r\n" if method == "POST" else ""
    return f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n{length}\r\n".encode() + body


class Caller:
    """
    One connection, with one request at a time. A context manager.

    Args:
        url: Any address of the server.
    """

    def __init__(self, url: str) -> None:
        """
        Connect.
        """
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Python's own timeout takes a poll(2) before whatever is read or written.
        self.socket.settimeout(None)
        for bound in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.socket.setsockopt(socket.SOL_SOCKET, bound, struct.pack("ll", PATIENCE, 0))
        self._left = b""

    def ask(self, request: bytes) -> Answer:
        """
        Send a request and wait for its answer.

        Raises:
            BenchmarkError: It is no success.
        """
        self.socket.sendall(request)
        return self.answer()

    def answer(self) -> Answer:
        """
        Wait for the answer to what has been sent.

        Raises:
            BenchmarkError: It is no success, or the connection was closed.
        """
        data = self._left or self._more()
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        begin = data.find(LENGTH, 0, end + 2) + len(LENGTH)
        length = int(data[begin : data.index(b"\r", begin)]) if begin >= len(LENGTH) else 0
        stop = end + 4 + length
        while len(data) < stop:
            data += self._more()
        self._left = data[stop:]
        answer = Answer(int(data[9:12]), data[: end + 2], data[end + 4 : stop])
        if not 200 <= answer.status <= 299:
            raise BenchmarkError(f"the gate answered {answer.head!r} {answer.body!r}")
        return answer

    def _more(self) -> bytes:
        data = self.socket.recv(1 << 18)
        if not data:
            raise BenchmarkError("the gate has closed a connection")
        return data

    def __enter__(self) -> Self:
        """
        Nothing to do: it is connected since it was made.
        """
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """
        Close the connection.
        """
        self.socket.close()


def push_lines(url: str, queue: str, line: bytes, count: int) -> None:
    """
    Push so many jobs, as fast as one connection can.
    """
    body = (line + b"\n") * LINES
    with Caller(url) as caller:
        for begin in range(0, count, LINES):
            if count - begin < LINES:
                body = (line + b"\n") * (count - begin)
            caller.ask(request_bytes("POST", f"/push/{queue}?each=line", body))


def metric(url: str, name: str, queue: str = "") -> float:
    """
    Read one number from the metrics page; one that is not there is 0.
    """
    with Caller(url) as caller:
        page = caller.ask(request_bytes("GET", "/metrics")).body.decode()
    label = rf'\{{[^}}]*queue="{re.escape(queue)}"[^}}]*\}}' if queue else ""
    found = re.search(rf"^{name}{label} (\S+)", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


def wait_for_metric(url: str, name: str, queue: str, wanted: float) -> None:
    """
    Wait until a counter has come so far.

    Raises:
        BenchmarkError: It has not, in time.
    """
    give_up = time.monotonic() + PATIENCE
    while (found := metric(url, name, queue)) < wanted:
        if time.monotonic() > give_up:
            raise BenchmarkError(f"{name} of {queue} is {found:g}, not {wanted:g}")
        # Each look costs the gate milliseconds, which the jobs should have.
        time.sleep(0.1)
