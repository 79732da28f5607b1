"""
What carries a worker's frames over a socket: bytes in and out, with TLS or without.

Runs in the worker and imports the standard library only. Must not know what the bytes say.
"""

from __future__ import annotations

import _thread
import socket
from select import POLLIN, poll
from time import monotonic

from jobgate.worker.link import READ

TYPE_CHECKING = False  # as in `jobgate.worker`
if TYPE_CHECKING:
    import ssl
    from typing import Any

__all__ = ["Plain", "Secret", "tls_context"]


class Plain:
    """
    A connection without TLS.

    Attributes:
        read: Some bytes, at most as many as it is told; none at the end.
        read_into: Likewise into a buffer; how many.
        send: Writes all of these bytes.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        # As the socket has them: for small frames, a call between the two would be felt.
        self.read = sock.recv
        self.read_into = sock.recv_into
        self.send = sock.sendall

    def readable(self, seconds: float = 0) -> bool:
        """Whether `read` would not wait now, or not after so many seconds."""
        ready = poll()
        ready.register(self.sock, POLLIN)
        return bool(ready.poll(seconds * 1000))

    def write(self, head: bytes, body: Any) -> None:  # noqa: ANN401
        """Write all of this, without putting it together."""
        sent = self.sock.sendmsg((head, body))
        if sent < len(head) + len(body):
            self.sock.sendall(memoryview(b"".join((head, body)))[sent:])


class Secret:
    """
    A connection with TLS.

    One thread may read while another writes, which an `ssl.SSLSocket` does not allow: OpenSSL's
    own state is only touched under `_tls`, and never while the network is waited for.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        import ssl

        self.sock = sock
        self._wants = ssl.SSLWantReadError
        self._ends = (ssl.SSLZeroReturnError, ssl.SSLEOFError)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._tls = _thread.allocate_lock()
        self._sending = _thread.allocate_lock()
        self._plain = b""
        self._ended = False
        while True:
            try:
                self._object.do_handshake()
                break
            except self._wants:
                self._flush()
                self._receive(wait=True)
                if self._ended:
                    message = "the connection ended in the TLS handshake"
                    raise ConnectionError(message) from None
        self._flush()

    def readable(self, seconds: float = 0) -> bool:
        """Whether `read` would not wait now, or not after so many seconds."""
        until = monotonic() + seconds
        while not (self._plain or self._ended):
            if not Plain(self.sock).readable(max(0.0, until - monotonic())):
                return False
            self._decrypt(wait=False)
        return True

    def read(self, count: int) -> bytes:
        """Some bytes, at most `count`; none at the end."""
        while not (self._plain or self._ended):
            self._decrypt(wait=True)
        data, self._plain = self._plain[:count], self._plain[count:]
        return data

    def read_into(self, view: memoryview) -> int:
        """Read into a buffer; returns how many, 0 at the end."""
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def send(self, data: bytes) -> None:
        """Write all of these bytes."""
        self.write(data, b"")

    def write(self, head: bytes, body: Any) -> None:  # noqa: ANN401
        """Write all of this."""
        with self._sending:
            with self._tls:
                self._object.write(head)
                if len(body):
                    self._object.write(body)
                data = self._out.read()
            self.sock.sendall(data)

    def _decrypt(self, *, wait: bool) -> None:
        """Take in what the network has, or wait for some."""
        self._receive(wait=wait)
        parts = []
        with self._tls:
            try:
                while part := self._object.read(READ):
                    parts.append(part)
                self._ended = True
            except self._wants:
                pass
            except self._ends:
                self._ended = True
        self._plain += b"".join(parts)
        self._flush()

    def _receive(self, *, wait: bool) -> None:
        try:
            data = self.sock.recv(READ, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        with self._tls:
            self._in.write(data) if data else self._in.write_eof()
        self._ended = not data

    def _flush(self) -> None:
        """Send what TLS itself has to say."""
        if self._out.pending:
            with self._sending:
                with self._tls:
                    data = self._out.read()
                self.sock.sendall(data)


def tls_context(certfile: str, keyfile: str, cafile: str) -> ssl.SSLContext:
    """
    How a worker speaks TLS.

    Args:
        certfile: Its own certificate; none if empty.
        keyfile: Its key, if that is not in `certfile`.
        cafile: The certificates that the gate's must be signed by; the system's if empty.
    """
    import ssl

    context = ssl.create_default_context(cafile=cafile or None)
    if certfile:
        context.load_cert_chain(certfile, keyfile or None)
    return context
