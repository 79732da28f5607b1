"""
HTTP by hand, from the standard library: for what no decent client would send.
"""

from __future__ import annotations

import json
import socket
from typing import Any, Self
from urllib.parse import urlsplit


class Answer:
    """
    One response.

    Attributes:
        status: The status code.
        fields: Name and value of every header, as sent, in order.
        body: The decoded body.
        whole: The body's framing said that this is all of it.
    """

    def __init__(
        self, status: int, fields: list[tuple[str, str]], body: bytes, *, whole: bool = True
    ) -> None:
        self.status = status
        self.fields = fields
        self.body = body
        self.whole = whole

    def __repr__(self) -> str:
        return f"<Answer {self.status} {self.fields} {self.body[:500]!r}>"

    def __getitem__(self, name: str) -> str:
        return next(value for key, value in self.fields if key.lower() == name.lower())

    def __contains__(self, name: str) -> bool:
        return any(key.lower() == name.lower() for key, _ in self.fields)

    def get(self, name: str) -> str | None:
        """A header, or None."""
        return self[name] if name in self else None  # noqa: SIM401 (it is what makes it work)

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def slug(self) -> str:
        """Which problem it is; empty if it is none."""
        if self["Content-Type"] != "application/problem+json":
            return ""
        kind: str = self.json["type"]
        return kind.removeprefix("/problems/")


def request_bytes(
    method: str,
    target: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    *,
    host: str = "127.0.0.1",
    version: str = "1.1",
) -> bytes:
    """A request as it goes over the wire."""
    lines = [f"{method} {target} HTTP/{version}"]
    given = {name.lower() for name in headers or ()}
    if "host" not in given:
        lines.append(f"Host: {host}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    chunked = (headers or {}).get("Transfer-Encoding") == "chunked"
    if (body or method == "POST") and "content-length" not in given and not chunked:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class RawConnection:
    """
    A socket to the gate that sends what it is told and reads responses.

    Args:
        url: The gate's.
        timeout: Seconds that every single read or write may take.
        receive_buffer: For a caller that is slow to read: bytes the kernel may take for it.
    """

    def __init__(self, url: str, timeout: float = 20.0, receive_buffer: int = 0) -> None:
        address = urlsplit(url)
        assert address.hostname is not None, url
        assert address.port is not None, url
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        self.socket.connect((address.hostname, address.port))
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave."""
        self.socket.close()

    def reset(self) -> None:
        """Leave rudely, with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def request(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        version: str = "1.1",
    ) -> Answer:
        """Send a request and read its response."""
        self.send(request_bytes(method, target, body, headers, version=version))
        return self.answer(method)

    def answer(self, method: str = "POST") -> Answer:
        """
        Read one response; one whose connection ended too early has `whole` False.

        Raises:
            ConnectionError: The connection ended before a response began.
        """
        status, fields = self.head()
        lower = {name.lower(): value for name, value in fields}
        if method == "HEAD" or status in (100, 204, 304):
            return Answer(status, fields, b"")
        if lower.get("transfer-encoding") == "chunked":
            return self._chunked(status, fields)
        if "content-length" in lower:
            length = int(lower["content-length"])
            body = self._exactly(length)
            return Answer(status, fields, body, whole=len(body) == length)
        return Answer(status, fields, self.rest())

    def head(self) -> tuple[int, list[tuple[str, str]]]:
        """Read status and headers."""
        while b"\r\n\r\n" not in self._buffer:
            data = self._receive()
            if not data:
                message = f"the connection ended after {self._buffer!r}"
                raise ConnectionError(message)
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        assert first.startswith("HTTP/1."), first
        fields = [(name, value.strip()) for name, _, value in (x.partition(":") for x in lines)]
        return int(first.split(" ")[1]), fields

    def chunk(self) -> bytes | None:
        """Read one chunk; empty at the end, None if the connection ended before that."""
        while b"\r\n" not in self._buffer:
            data = self._receive()
            if not data:
                return None
            self._buffer += data
        size, _, self._buffer = self._buffer.partition(b"\r\n")
        length = int(size, 16)
        data = self._exactly(length + 2)
        return data[:-2] if len(data) == length + 2 else None

    def rest(self) -> bytes:
        """Read to the end of the connection."""
        parts = [self._buffer]
        self._buffer = b""
        while data := self._receive():
            parts.append(data)
        return b"".join(parts)

    def ended(self) -> bool:
        """Wait for the end; whether it came without another byte."""
        return not self._buffer and not self._receive()

    def _chunked(self, status: int, fields: list[tuple[str, str]]) -> Answer:
        parts = []
        while True:
            part = self.chunk()
            if not part:
                return Answer(status, fields, b"".join(parts), whole=part is not None)
            parts.append(part)

    def _exactly(self, count: int) -> bytes:
        parts, have = [self._buffer], len(self._buffer)
        while have < count:
            data = self._receive()
            if not data:
                break
            parts.append(data)
            have += len(data)
        data = b"".join(parts)
        self._buffer = data[count:]
        return data[:count]

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(256 * 1024)
        except ConnectionResetError:
            return b""
