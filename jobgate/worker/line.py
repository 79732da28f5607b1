"""
A worker's own way of asking a gate over HTTP: one kept-alive connection.

Runs in the worker and imports the standard library only. Must not know what is asked.
"""

from __future__ import annotations

import socket
from _thread import allocate_lock
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jobgate.worker.carriers import tls_context
from jobgate.worker.quick_json import loads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from email.message import Message

__all__ = ["Answer", "Line", "Lost"]

_WITHIN = 10.0
"""Seconds for a connection."""
_ANSWER = 30.0
"""Seconds for an answer, beyond those that the gate may wait."""
_PATIENCE = 60.0
"""The most of a `Retry-After` that is believed."""


class Lost(Exception):
    """No whole answer came."""


class Answer:
    """What the gate said."""

    def __init__(self, status: int, headers: Message, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def why(self) -> str:
        """The problem in one line."""
        try:
            said = loads(self.body)
            return f"{said['title']}: {said['detail']}"
        except (ValueError, TypeError, KeyError):
            return f"HTTP status {self.status}"

    @property
    def later(self) -> bool:
        """Whether the same request may be answered otherwise in a while."""
        return self.status in (408, 429) or self.status >= 500

    @property
    def after(self) -> float:
        """Seconds after which the gate wants to be asked again; 0 if it does not say."""
        text = self.headers.get("Retry-After") or ""
        return min(float(text), _PATIENCE) if text.isdecimal() else 0.0


class Line:
    """
    One kept-alive connection, used by one thread at a time.

    Args:
        url: Where the gate is.
        token: What allows it.
        files: Certificate, key and authorities, for `https`.

    Raises:
        ValueError: The URL is none.
    """

    def __init__(self, url: str, token: str, files: tuple[str, str, str]) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            msg = f'url: found {url!r}, wanted "http://HOST:PORT" or "https://HOST:PORT"'
            raise ValueError(msg)
        if parts.scheme == "https":
            self._connection: HTTPConnection = HTTPSConnection(
                parts.hostname, parts.port, timeout=_WITHIN, context=tls_context(*files)
            )
        else:
            self._connection = HTTPConnection(parts.hostname, parts.port, timeout=_WITHIN)
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._busy = allocate_lock()

    def ask(
        self,
        method: str,
        path: str,
        body: Any = b"",  # noqa: ANN401 (bytes, or a buffer of bytes)
        headers: Mapping[str, str] | None = None,
        *,
        wait: float = 0,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Answer | None:
        """
        Send one request and read all of its answer.

        Args:
            method: GET or POST.
            path: Below the URL, with its query.
            body: What is sent.
            headers: What is said about it.
            wait: Seconds for which the gate may keep the answer back.
            wanted: Asked when it is this one's turn; None is returned if it is not any more.

        Raises:
            Lost: There was no whole answer: whether it was carried out is not known.
        """
        connection = self._connection
        with self._busy:
            if not wanted():
                return None
            try:
                # A gate closes what has been idle for long; that is known here before it matters.
                if connection.sock is not None and _is_over(connection.sock):
                    connection.close()
                if connection.sock is None:
                    connection.timeout = _WITHIN
                    connection.connect()
                sock: socket.socket = connection.sock
                sock.settimeout(wait + _ANSWER)
                connection.request(
                    method, self._prefix + path, body, {**self._headers, **(headers or {})}
                )
                response = connection.getresponse()
                return Answer(response.status, response.headers, response.read())
            except (OSError, HTTPException) as error:
                connection.close()
                why = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise Lost(why) from None
            except BaseException:
                # Half an answer must not be taken for the next one.
                connection.close()
                raise

    def end_waiting(self) -> None:
        """
        Tell the gate that a waiting request need not be answered any more.

        What it has sent before it hears of that is still read.
        """
        sock = self._connection.sock
        if sock is not None:
            try:
                socket.socket.shutdown(sock, socket.SHUT_WR)
            except OSError:
                return

    def disown(self) -> None:
        """In a forked child: the connection belongs to the parent alone."""
        self._busy = allocate_lock()
        self._connection.close()


def _is_over(sock: socket.socket) -> bool:
    """Whether the other side has closed it (or has said what nobody asked for)."""
    sock.settimeout(0)
    try:
        # Not recv of a TLS socket: what comes unasked is an end there, too.
        socket.socket.recv(sock, 1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
